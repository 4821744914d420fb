"""The layers every benchmark measures, each with the reason it is there.

Convolutions give their input as [N, C, H, W], linear layers as [tokens, features]; "columns" is
transformers' Conv1D, whose weight is [in, out].
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

SHARES = (1.0, 0.5, 0.25, 0.1)


@dataclass(frozen=True)
class Case:
    """One layer on one input.

    ``arguments``: the layer's: in and out, then for a convolution the kernel, stride and groups.
    ``parameters``: their dtype where it is not that of the activations: autocast casts them.
    ``quick``: part of the short run.
    """

    name: str
    kind: str
    input: tuple[int, ...]
    arguments: dict[str, int]
    reason: str
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    parameters: torch.dtype | None = field(default=None, kw_only=True)
    quick: bool = field(default=False, kw_only=True)

    @property
    def neurons(self) -> int:
        return self.arguments["outputs"]

    @property
    def layout(self) -> str:
        if self.kind != "conv":
            return "tokens"
        return "channels_last" if self.channels_last else "contiguous"

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.") + (" autocast" if self.parameters else "")

    def autocast(self, device: str) -> AbstractContextManager[object]:
        """What its forward runs in."""
        if not self.parameters:
            return nullcontext()
        return torch.autocast(torch.device(device).type, self.dtype)

    @property
    def geometry(self) -> str:
        a = self.arguments
        text = f"{a['inputs']}->{a['outputs']}"
        if self.kind == "conv":
            text += f" {a['kernel']}x{a['kernel']}"
            text += f" stride {a['stride']}" if a["stride"] > 1 else ""
            text += f" groups {a['groups']}" if a["groups"] > 1 else ""
        return f"{text} @ {'x'.join(map(str, self.input))} ({self.name})"

    def layer(self, device: str = "cpu") -> nn.Module:
        """A fresh layer, with bias."""
        a = self.arguments
        layer: nn.Module
        if self.kind == "conv":
            layer = nn.Conv2d(
                a["inputs"], a["outputs"], a["kernel"], a["stride"], a["kernel"] // 2,
                groups=a["groups"],
            )  # fmt: skip
        elif self.kind == "columns":
            from transformers.pytorch_utils import Conv1D

            layer = Conv1D(a["outputs"], a["inputs"])
        else:
            layer = nn.Linear(a["inputs"], a["outputs"])
        dtype = self.parameters or self.dtype
        return layer.to(device, dtype, memory_format=self._format())

    def example(self, device: str = "cpu") -> Tensor:
        """A fresh random input."""
        x = torch.randn(self.input, device=device, dtype=self.dtype)
        return x.contiguous(memory_format=self._format())

    def macs(self) -> int:
        """Multiplications of the layer's forward, which are those of dgrad and of wgrad too."""
        a = self.arguments
        if self.kind != "conv":
            return prod(self.input) * a["outputs"]
        side = -(-self.input[2] // a["stride"])
        per_output = a["inputs"] // a["groups"] * a["kernel"] ** 2
        return self.input[0] * a["outputs"] * side**2 * per_output

    def _format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def conv(
    name: str, shape: tuple[int, ...], outputs: int, kernel: int, reason: str, *,
    stride: int = 1, depthwise: bool = False, dtype: torch.dtype = torch.float32,
    quick: bool = False,
) -> list[Case]:  # fmt: skip
    """The case in NCHW and in channels_last."""
    arguments = {
        "inputs": shape[1], "outputs": outputs, "kernel": kernel, "stride": stride,
        "groups": shape[1] if depthwise else 1,
    }  # fmt: skip
    return [
        Case(name, "conv", shape, arguments, reason, dtype, channels_last=layout, quick=quick)
        for layout in (False, True)
    ]


def linear(
    name: str, tokens: int, inputs: int, outputs: int, reason: str, *,
    kind: str = "linear", dtype: torch.dtype = torch.float32, quick: bool = False,
) -> list[Case]:  # fmt: skip
    arguments = {"inputs": inputs, "outputs": outputs}
    return [Case(name, kind, (tokens, inputs), arguments, reason, dtype, quick=quick)]


CASES: list[Case] = [
    *conv("ResNet-32 stage 1", (128, 16, 32, 32), 16, 3, "16 channels fill no vector: may lose"),
    *conv("ResNet-32 down 2", (128, 16, 32, 32), 32, 3, "stride 2, few input channels", stride=2),
    *conv("ResNet-32 stage 2", (128, 32, 16, 16), 32, 3, "a third of the demo's layers"),
    *conv("ResNet-32 stage 3", (128, 64, 8, 8), 64, 3, "the demo's widest layers", quick=True),
    *linear("ResNet-32 head", 128, 64, 10, "tiny: overhead is all there is to see", quick=True),
    *conv("ResNet-50 stem", (8, 3, 112, 112), 64, 7, "3 input channels: dY is the big tensor",
          stride=2),
    *conv("ResNet-50 reduce 1", (8, 256, 28, 28), 64, 1, "1x1: packing is dear, I = 256"),
    *conv("ResNet-50 expand 1", (8, 64, 28, 28), 256, 1, "1x1 with I = 64: packing at its dearest"),
    *conv("ResNet-50 middle 2", (8, 128, 14, 14), 128, 3, "typical 3x3", quick=True),
    *conv("ResNet-50 middle 3 down", (8, 256, 14, 14), 256, 3, "stride 2, wide", stride=2),
    *conv("ResNet-50 expand 3", (8, 256, 7, 7), 1024, 1, "1x1, many neurons", quick=True),
    *conv("ResNet-50 middle 4", (8, 512, 4, 4), 512, 3, "weight larger than activations"),
    *conv("MobileNetV2 expand 3", (16, 24, 24, 24), 144, 1, "1x1 with I = 24: bandwidth-bound"),
    *conv("MobileNetV2 depthwise 3", (16, 144, 24, 24), 144, 3, "one group per neuron, large",
          depthwise=True, quick=True),
    *conv("MobileNetV2 project 3", (16, 144, 24, 24), 24, 1, "24 neurons: 10 % are two"),
    *conv("MobileNetV2 expand 13", (16, 96, 6, 6), 576, 1, "1x1, few positions"),
    *conv("MobileNetV2 depthwise 14", (16, 576, 6, 6), 576, 3, "one group per neuron, small planes",
          depthwise=True),
    *conv("MobileNetV2 last", (16, 320, 3, 3), 1280, 1, "many neurons, 144 positions"),
    *linear("ViT-B MLP in", 1576, 768, 3072, "8 images of 197 tokens"),
    *linear("ViT-B MLP out", 1576, 3072, 768, "long rows: packing at its cheapest"),
    *linear("ViT-B projection", 1576, 768, 768, "square", quick=True),
    *linear("ViT-B qkv", 1576, 768, 2304, "three projections in one"),
    *linear("GPT-2 MLP in", 1024, 768, 3072, "neurons are columns of the weight", kind="columns"),
    *linear("GPT-2 MLP out", 1024, 3072, 768, "columns, long rows", kind="columns"),
    *linear("small MLP", 64, 128, 128, "microseconds: overhead decides"),
    *linear("one token", 1, 1024, 1024, "batch 1: the weight gradient is an outer product"),
    *conv("one image", (1, 64, 56, 56), 64, 3, "batch 1"),
    *linear("half-precision MLP", 512, 256, 256, "small: slow on a CPU without AVX-512",
            dtype=torch.bfloat16),
    *conv("half-precision conv", (2, 128, 14, 14), 128, 3, "small for the same reason",
          dtype=torch.bfloat16),
]  # fmt: skip
