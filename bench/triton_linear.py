"""What is known of the Triton kernels without a GPU: python -m bench.triton_linear

First the launcher's own time on this processor, with Triton's launch stubbed out: choosing the form
and the configuration, allocating, gathering the arguments. Then what the cost function predicts for
a GPU. A prediction is no measurement, and is labelled so wherever it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from bench import triton_shared as shared
from bench.geometries import gpt2_medium, vit_b
from neq_kernels import reference
from neq_kernels.active import bucket
from neq_kernels.kernels import configuration, device
from neq_kernels.kernels.configuration import Product

# Tokens, inputs, neurons.
LAYERS = {
    f"{network} {name}": layer[:3]
    for network, layers in (("GPT-2 medium", gpt2_medium()), ("ViT-B", vit_b(64)))
    for name, layer in layers.items()
}


def launcher_microseconds(calls: int = 2000) -> dict[str, float]:
    """Median time per call of each launcher, everything but Triton's own launch."""
    from neq_kernels.kernels.linear_backward import linear_backward
    from neq_kernels.kernels.linear_wgrad import linear_wgrad

    dy, x, weight = torch.randn(64, 64), torch.randn(64, 64), torch.randn(64, 64)
    channels = shared.channels(64, 16)
    packed = reference.pack_channels(dy, channels.padded[:16], 16, 1, False)

    def pack(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        return packed

    ways: dict[str, Callable[[], object]] = {
        f"{name}, {form}": lambda f=function, a=arguments, form=form: f(*a, pack, form=form)
        for name, function, arguments in (
            ("linear_wgrad", linear_wgrad, (dy, x, channels, True, False)),
            ("linear_backward", linear_backward, (dy, x, weight, channels, True, False)),
        )
        for form in ("gathered", "packed", None)
    }
    with shared.without_launch():
        return {
            name.replace("None", "chosen"): shared.microseconds(way, calls)
            for name, way in ways.items()
        }


def predictions(gpu: device.Device) -> str:
    """The cost function's table for linear_wgrad in bfloat16: packed dY, the packing included."""
    lines = [shared.head("linear_wgrad")]
    for name, (tokens, inputs, neurons) in LAYERS.items():
        for share in shared.SHARES:
            rows = min(bucket(max(int(neurons * share), 1)), neurons)
            product = Product("half", 2, rows, inputs, tokens)
            best = configuration.choose(product, gpu)
            moved = tokens * (neurons + rows) * 2
            packing = configuration.PACK_KERNELS * configuration.KERNEL + moved / gpu.bandwidth
            spent = configuration.cost(product, best, gpu) + packing
            read = 2 * (tokens * (neurons + inputs) + neurons * inputs)
            flops = 2 * rows * inputs * tokens
            lines.append(shared.row(name, share, best, spent, flops, read, gpu))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    shared.main(launcher_microseconds, predictions, __doc__, arguments)


if __name__ == "__main__":
    main()
