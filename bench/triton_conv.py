"""What is known of the Triton convolutions without a GPU: python -m bench.triton_conv

As :mod:`bench.triton_linear`: the launchers' own time on this processor, then what the cost
function predicts for a GPU. A prediction is no measurement, and is labelled so wherever it goes.
Depthwise convolutions have no cost function, as nothing is chosen for them: they have no row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from bench import triton_shared as shared
from bench.geometries import Convolution, mobilenet_v2, resnet32, resnet50
from neq_kernels import reference
from neq_kernels.active import bucket
from neq_kernels.kernels import device
from neq_kernels.kernels.configuration import cost

NETWORKS = {"ResNet-50": resnet50(), "MobileNetV2": mobilenet_v2(), "ResNet-32": resnet32()}
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
LAUNCHED = {"3x3": (64, 3, 1), "1x1": (64, 1, 1), "depthwise": (64, 3, 64)}


def launcher_microseconds(calls: int = 2000) -> dict[str, float]:
    """Median time per call of each launcher, everything but Triton's own launch."""
    from neq_kernels.kernels.conv import conv_backward, conv_wgrad

    ways: dict[str, Callable[[], object]] = {}
    for name, (inputs, kernel, groups) in LAUNCHED.items():
        for layout, memory_format in LAYOUTS.items():
            shapes = ((4, 64, 8, 8), (4, inputs, 8, 8), (64, inputs // groups, kernel, kernel))
            operands = [torch.randn(s).contiguous(memory_format=memory_format) for s in shapes]
            channels = shared.channels(64, 16)
            packed = reference.pack_channels(operands[0], channels.padded[:16], 16, 1, False)
            window = ((1, 1), (kernel // 2,) * 2, (1, 1), groups)
            for function in (conv_wgrad, conv_backward):
                ways[f"{function.__name__}, {name} {layout}"] = (
                    lambda f=function, a=(*operands, channels, True, *window), p=packed: f(
                        *a, lambda *arguments: p
                    )
                )
    with shared.without_launch():
        return {name: shared.microseconds(way, calls) for name, way in ways.items()}


def predictions(gpu: device.Device) -> str:
    """The cost function's table for conv_wgrad in bfloat16, packing of dY included."""
    lines = [shared.head("conv_wgrad")]
    for network, layers in NETWORKS.items():
        for layer, sizes in layers.items():
            for layout in LAYOUTS if sizes.groups == 1 else ():
                for share in shared.SHARES:
                    lines.append(_row(f"{network} {layer} {layout}", sizes, layout, share, gpu))
    return "\n".join(lines)


def _row(name: str, sizes: Convolution, layout: str, share: float, gpu: device.Device) -> str:
    from neq_kernels.kernels import conv

    images, inputs, side, outputs, kernel, stride, _ = sizes
    padding = kernel // 2
    out = (side + 2 * padding - kernel) // stride + 1
    dy, x, weight = (
        torch.empty(s, dtype=torch.bfloat16, device="meta", memory_format=LAYOUTS[layout])
        for s in (
            (images, outputs, out, out), (images, inputs, side, side),
            (outputs, inputs, kernel, kernel),
        )
    )  # fmt: skip
    width = min(bucket(max(int(outputs * share), 1)), outputs)
    index = torch.empty(outputs, dtype=torch.int32, device="meta")
    window = ((stride,) * 2, (padding,) * 2, (1, 1))
    form, shape = conv.form_of(
        dy, x, weight, index, width, window, 1, False, "half", "half", gpu, None
    )
    # A linear layer of such operands packs, too.
    packed = form in ("packed", "linear")
    kept = dy[:, :width].contiguous(memory_format=LAYOUTS[layout]) if packed else dy
    form = "packed" if packed else form
    _, product, best = conv.wgrad_choice(kept, x, shape, width, form, "half", gpu)
    spent = cost(product, best, gpu) + (conv.packing(shape, width, 2, gpu) if packed else 0)
    flops = 2 * shape.positions * width * shape.fan_in
    # Planes of frozen channels are never read; between contiguous channels they cannot be left out.
    read = shape.positions * (outputs if layout == "NHWC" else width) + x.numel() + weight.numel()
    return shared.row(f"{name}, {form}", share, best, spent, flops, 2 * read, gpu)


def main(arguments: Sequence[str] | None = None) -> None:
    shared.main(launcher_microseconds, predictions, __doc__, arguments)


if __name__ == "__main__":
    main()
