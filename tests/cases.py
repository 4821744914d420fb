"""The layers and sets that the tests run, a reason per row, and what their gradients must be.

The truth is dense autograd in fp64 on torch's own layer: with dY's frozen channels zeroed for
``propagate="active"``, and always with the frozen rows of the parameters' gradients zeroed.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import neq_kernels as neq
from neq_kernels import backends
from neq_kernels.layer import NEqLayer

SIZE_WITHOUT_BATCH = {nn.Conv1d: 2, nn.Conv2d: 3, nn.Conv3d: 4}


@dataclass(frozen=True)
class Case:
    """One torch layer (``make``), the shape of its input, and the reason why it is tested."""

    name: str
    make: partial[nn.Module]
    input: tuple[int, ...]
    reason: str

    def layer(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(1)
        layer = self.make().to(dtype)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(torch.randn(parameter.shape))
        return layer

    def x(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return randn(self.input, dtype, seed=2).requires_grad_()


def _linear(name: str, shape: tuple[int, ...], reason: str, out: int = 11, **options: bool) -> Case:
    return Case(name, partial(nn.Linear, shape[-1], out, **options), shape, reason)


def _conv(name: str, shape: tuple[int, ...], *arguments: object, reason: str, **options) -> Case:
    kind = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
    return Case(name, partial(kind, shape[1], *arguments, **options), shape, reason)


LINEAR = [
    _linear("vector", (5,), "no batch dimension at all"),
    _linear("matrix", (7, 5), "the plain case"),
    _linear("tokens", (2, 3, 5), "transformers' [batch, tokens, features]"),
    _linear("windows", (2, 3, 2, 5), "Swin's four dimensions"),
    _linear("empty-batch", (0, 5), "the last batch may be empty"),
    _linear("no-tokens", (2, 0, 5), "an empty dimension that is not the first"),
    _linear("no-bias", (7, 5), "no bias gradient", bias=False),
    _linear("blocks", (6, 9), "more than one block of eight channels", out=37),
    _linear("one-neuron", (4, 3), "a regression head: all or none", out=1),
    _linear("long-sum", (3000, 4), "error must not grow with the number of tokens"),
]

CONV = [
    _conv("plain", (2, 3, 6, 5), 11, 3, reason="the plain case, not square"),
    _conv("no-bias", (2, 3, 6, 5), 11, 3, bias=False, reason="no bias gradient"),
    _conv("stride", (2, 3, 9, 8), 9, 3, stride=(2, 3), reason="input columns that no output reads"),
    _conv("padding", (2, 3, 5, 6), 9, 3, padding=(2, 1), reason="a number per dimension"),
    _conv("dilation", (2, 3, 9, 9), 9, 3, dilation=(2, 3), padding=2, reason="taps spread out"),
    _conv("same", (2, 3, 6, 5), 9, 3, padding="same", reason="a string for padding"),
    _conv("same-even", (2, 3, 6, 5), 9, (2, 4), padding="same", reason="uneven zeros"),
    _conv("same-dilated", (2, 3, 7, 8), 9, (2, 3), padding="same", dilation=(3, 2), reason="both"),
    _conv("valid", (2, 3, 6, 5), 9, 3, padding="valid", reason="a string for padding"),
    _conv("asymmetric", (2, 3, 6, 7), 9, (1, 5), padding=(0, 2), reason="kernels not square"),
    _conv("pointwise", (2, 6, 5, 4), 13, 1, reason="1x1: strides of any format look alike"),
    _conv("pointwise-stride", (2, 6, 5, 4), 13, 1, stride=2, reason="ResNet's downsampling"),
    _conv("groups", (2, 6, 6, 5), 12, 3, groups=3, reason="sets that leave a group part-filled"),
    _conv("depthwise", (2, 10, 6, 5), 10, 3, groups=10, padding=1, reason="one channel a group"),
    _conv("multiplier", (2, 5, 6, 5), 15, 3, groups=5, reason="depthwise, three per input"),
    _conv("groups-same", (2, 4, 6, 5), 8, 2, groups=2, padding="same", reason="pad, then group"),
    _conv("one-channel", (2, 1, 6, 5), 9, 3, reason="input channel strides are arbitrary"),
    _conv("empty-batch", (0, 3, 6, 5), 9, 3, padding=1, reason="the last batch may be empty"),
    _conv("empty-groups", (0, 4, 6, 5), 8, 3, groups=2, reason="an empty batch, packed by group"),
    _conv("one-sample", (1, 3, 6, 5), 9, 3, reason="batch 1"),
    _conv("1d", (2, 3, 9), 11, 3, stride=2, padding=1, reason="sequences"),
    _conv("1d-same", (2, 3, 9), 11, 4, padding="same", reason="uneven zeros in one dimension"),
    _conv("1d-depthwise", (2, 6, 9), 6, 3, groups=6, reason="Mamba and Conformer blocks"),
    _conv("3d", (1, 2, 4, 5, 4), 9, (2, 3, 2), padding=(1, 0, 1), reason="volumes"),
    _conv("3d-groups", (1, 4, 4, 5, 4), 8, 2, groups=2, stride=2, reason="volumes in groups"),
    *(
        _conv(f"{mode}-{length}d", shape, 9, 3, padding=1, padding_mode=mode, reason="pads itself")
        for mode in ("reflect", "replicate", "circular")
        for length, shape in ((1, (2, 3, 7)), (2, (2, 3, 5, 6)), (3, (1, 2, 4, 3, 4)))
    ),
    _conv(
        "same-circular",
        (2, 3, 6, 5),
        9,
        (2, 4),
        padding="same",
        padding_mode="circular",
        reason="uneven padding that is not zeros",
    ),
    *(
        Case(f"{kind.__name__}-no-batch", partial(kind, 4, 9, 3, padding=1, **options), shape, why)
        for kind, shape in (
            (nn.Conv1d, (4, 7)),
            (nn.Conv2d, (4, 5, 6)),
            (nn.Conv3d, (4, 4, 3, 5)),
        )
        for options, why in (
            ({}, "no batch dimension"),
            ({"padding_mode": "circular"}, "no batch dimension for F.pad either"),
        )
    ),
]

NORM = [
    Case("1d", partial(nn.BatchNorm1d, 9), (6, 9), "features"),
    Case("1d-length", partial(nn.BatchNorm1d, 9), (4, 9, 5), "sequences"),
    Case("2d", partial(nn.BatchNorm2d, 9), (4, 9, 3, 5), "images"),
    Case("3d", partial(nn.BatchNorm3d, 9), (2, 9, 3, 2, 3), "volumes"),
    Case("cumulative", partial(nn.BatchNorm2d, 9, momentum=None), (4, 9, 3, 5), "plain average"),
    Case(
        "untracked",
        partial(nn.BatchNorm2d, 9, track_running_stats=False),
        (4, 9, 3, 5),
        "batch statistics in eval too",
    ),
    Case("layer", partial(nn.LayerNorm, 9), (4, 5, 9), "transformers"),
    Case("layer-no-bias", partial(nn.LayerNorm, 9, bias=False), (4, 5, 9), "gamma alone"),
    Case("layer-vector", partial(nn.LayerNorm, 9), (9,), "no batch dimension"),
    Case("rms", partial(nn.RMSNorm, 9), (4, 5, 9), "eps None: that of the dtype"),
    Case("rms-eps", partial(nn.RMSNorm, 9, eps=1e-3), (4, 5, 9), "an eps of its own"),
]

SETS = ("one", "first", "last", "ends", "odd", "all but one", "all", "none")


def conv1d_columns(case: Case) -> Case:
    """The transformers layer that stands for a linear ``case``."""
    from transformers.pytorch_utils import Conv1D

    linear = case.make()
    make = partial(Conv1D, linear.out_features, linear.in_features)
    return Case(f"columns-{case.name}", make, case.input, case.reason)


def inside(layer: nn.Module, propagate: str = "all") -> NEqLayer:
    """``layer`` converted as part of a model: what a model does for its output stays away."""
    return neq.convert(nn.Sequential(layer), propagate=propagate)[0]


def ids(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


def by_name(cases: list[Case], name: str) -> Case:
    return next(case for case in cases if case.name == name)


def chosen(name: str, size: int) -> list[int]:
    """The channels of the set called ``name`` out of ``size``."""
    shuffled = torch.randperm(
        size, generator=torch.Generator().manual_seed(size), device="cpu"
    ).tolist()
    return {
        "one": [size // 2],
        "first": [0],
        "last": [size - 1],
        "ends": sorted({0, size - 1}),
        "odd": sorted(shuffled[: (size // 2) | 1]),
        "all but one": sorted(shuffled[1:]),
        "all": list(range(size)),
        "none": [],
    }[name]


def randn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """The same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return drawn.to(torch.get_default_device(), dtype)


def skip_unserved(dtype: torch.dtype, spatial: int = 0) -> None:
    """Skip where the backend in turn serves no such tensors: it would raise, as it should."""
    backend, device = backends._requested, torch.get_default_device().type
    if backend and (reason := backends.why_not(backend, device, dtype, spatial)):
        pytest.skip(f"{backend} {reason}")


def channel_axis(layer: nn.Module, y: Tensor) -> int:
    """The axis of ``y`` that counts the neurons of ``layer``, also without a batch dimension."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        return y.dim() - 1 - len(layer.kernel_size)
    return 1 if isinstance(layer, nn.modules.batchnorm._BatchNorm) else y.dim() - 1


def neuron_dim(layer: nn.Module, name: str) -> int:
    columns = name == "weight" and any(base.__name__ == "Conv1D" for base in type(layer).__mro__)
    return int(columns)


def size_of(layer: nn.Module) -> int:
    return layer.weight.shape[neuron_dim(layer, "weight")]


def frozen_of(index: list[int], size: int) -> list[int]:
    return sorted(set(range(size)) - set(index))


def zeroed(tensor: Tensor, axis: int, channels: list[int]) -> Tensor:
    return tensor.index_fill(
        axis, torch.tensor(channels, dtype=torch.long, device=tensor.device), 0
    )


def gradients(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor | None]:
    """Gradients of ``x`` and of the parameters of ``layer`` after one forward and backward."""
    layer.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_(x.requires_grad)
    layer(x).backward(dy)
    return {"x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}


def truth(
    layer: nn.Module,
    x: Tensor,
    dy: Tensor,
    index: list[int],
    propagate: str,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor | None]:
    """What :func:`gradients` must be for torch's own ``layer`` with only ``index`` active."""
    layer, x = copy.deepcopy(layer).to(dtype), x.detach().to(dtype).requires_grad_(x.requires_grad)
    frozen = frozen_of(index, size_of(layer))
    seen = dy.to(dtype)
    is_norm = layer.weight.dim() == 1
    if propagate == "active" and not is_norm:
        seen = zeroed(seen, channel_axis(layer, dy), frozen)
    found = gradients(layer, x, seen)
    for name in ("weight", "bias"):
        if found.get(name) is not None:
            found[name] = zeroed(found[name], neuron_dim(layer, name), frozen)
    return found


def assert_exact(
    layer: nn.Module,
    x: Tensor,
    dy: Tensor,
    index: list[int],
    propagate: str,
    found: dict[str, Tensor | None],
) -> None:
    """Contract 1 and 2 for ``found``, the gradients of ``layer`` (torch's own) once converted."""
    expected = truth(layer, x, dy, index, propagate)
    torchs = truth(layer, x, dy, index, propagate, x.dtype)
    size = size_of(layer)
    for name, reference in expected.items():
        if name != "x" and not index:
            assert found[name] is None, name
            continue
        if reference is None or (propagate == "active" and not index and layer.weight.dim() > 1):
            assert found[name] is None, name
            continue
        ours = found[name]
        assert (ours.dtype, ours.shape) == (x.dtype, reference.shape), name
        if name != "x":
            frozen = torch.tensor(frozen_of(index, size), dtype=torch.long, device=ours.device)
            rows = ours.index_select(neuron_dim(layer, name), frozen)
            assert torch.equal(rows, torch.zeros_like(rows)), f"{name}: frozen rows are not zero"
        assert_within(ours, reference, torchs[name], *_sum_of(name, layer, x, dy), name)


def assert_within(
    ours: Tensor, reference: Tensor, torchs: Tensor, length: int, scale: float, name: str = ""
) -> None:
    """Contract 1: |ours - fp64| <= max(2 |torch - fp64|, 4 eps sqrt(length) scale)."""
    if not reference.numel():
        return
    error = (ours.double() - reference).abs().max().item()
    own = (torchs.double() - reference).abs().max().item()
    bound = max(2 * own, 4 * torch.finfo(ours.dtype).eps * math.sqrt(length) * scale)
    assert error <= bound, f"{name}: error {error:.3g}, allowed {bound:.3g}, torch's own {own:.3g}"


def _sum_of(name: str, layer: nn.Module, x: Tensor, dy: Tensor) -> tuple[int, float]:
    """Length of the sum behind each entry of a gradient, and the size of its terms."""

    def rms(tensor: Tensor) -> float:
        return tensor.detach().double().square().mean().sqrt().item() if tensor.numel() else 0.0

    size = size_of(layer)
    if layer.weight.dim() == 1:
        return max(dy.numel(), 1), rms(dy) * max(rms(x), 1) * max(rms(layer.weight), 1)
    if name == "x":
        return max(layer.weight.numel() // min(layer.weight.shape[:2]), size), (
            rms(dy) * rms(layer.weight)
        )
    return max(dy.numel() // size, 1), rms(dy) * (rms(x) if name == "weight" else 1.0)
