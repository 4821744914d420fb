"""What is known of the Triton kernels without a GPU: python -m bench.triton_linear

First the launcher's own time on this processor, with Triton's launch stubbed out: choosing the form
and the configuration, allocating, gathering the arguments. Then what the cost function predicts for
a GPU. A prediction is no measurement, and is labelled so wherever it goes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from unittest import mock

import torch

from neq_kernels import kernels, reference
from neq_kernels.active import ActiveSet, bucket, lists
from neq_kernels.kernels import configuration, device
from neq_kernels.kernels.configuration import Product

# Tokens, inputs, neurons.
LAYERS = {
    "GPT-2 medium MLP in": (8192, 1024, 4096),
    "GPT-2 medium MLP out": (8192, 4096, 1024),
    "GPT-2 medium attention": (8192, 1024, 1024),
    "ViT-B MLP in": (12608, 768, 3072),
    "ViT-B MLP out": (12608, 3072, 768),
}
SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)
GPUS = {"A100": device.A100, "H200": device.H200, "B200": device.B200}


def launcher_microseconds(calls: int = 2000) -> dict[str, float]:
    """Median time per call of each launcher, everything but Triton's own launch."""
    from triton.runtime.jit import JITFunction

    from neq_kernels.kernels.linear_backward import linear_backward
    from neq_kernels.kernels.linear_wgrad import linear_wgrad

    dy, x = torch.randn(64, 64), torch.randn(64, 64)
    weight = torch.randn(64, 64)
    index = torch.full((64,), -1, dtype=torch.int32)
    chosen = ActiveSet.from_index(range(0, 64, 4), 64).index
    index[: len(chosen)] = chosen
    channels = lists(index, torch.tensor(len(chosen)))
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
    with (
        mock.patch.object(JITFunction, "run", _nothing),
        mock.patch.object(device, "_describe", _stand_in),
    ):
        return {name.replace("None", "chosen"): _median(way, calls) for name, way in ways.items()}


def _nothing(*arguments: object, **options: object) -> None:
    """In place of Triton's launch; a mock would take longer than what is measured."""


def _stand_in(index: int) -> device.Device:
    return device.H200


def _median(way: Callable[[], object], calls: int) -> float:
    for _ in range(50):
        way()
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        way()
        times.append(time.perf_counter() - started)
    return median(times) * 1e6


def predictions(gpu: device.Device) -> str:
    """The cost function's table for linear_wgrad in bfloat16: packed dY, the packing included."""
    title = "PREDICTED, not measured: linear_wgrad, bfloat16"
    columns = f"{'tile':>11} {'split':>5} {'us':>8} {'roofline us':>11} {'reached':>7}"
    lines = [f"{title:48} {'active':>6} {columns}"]
    for name, (tokens, inputs, neurons) in LAYERS.items():
        for share in SHARES:
            rows = min(bucket(max(int(neurons * share), 1)), neurons)
            product = Product("half", 2, rows, inputs, tokens)
            best = configuration.choose(product, gpu)
            moved = tokens * (neurons + rows) * 2
            packing = configuration.PACK_KERNELS * configuration.KERNEL + moved / gpu.bandwidth
            us = (configuration.cost(product, best, gpu) + packing) / 1e3
            flops = 2 * rows * inputs * tokens / (gpu.flops["half"] * gpu.processors)
            read = 2 * (tokens * (neurons + inputs) + neurons * inputs) / gpu.bandwidth
            roofline = max(flops, read) / 1e3
            tile = f"{best.tile.rows}x{best.tile.columns}x{best.tile.depth}"
            lines.append(
                f"{name:48} {share:6.0%} {tile:>11} {best.split:5} {us:8.1f} {roofline:11.1f} "
                f"{roofline / us:7.0%}"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpu", choices=GPUS, default="H200", help="whose times to predict")
    options = parser.parse_args(arguments)
    if kernels.interpreted():
        raise SystemExit("TRITON_INTERPRET is set: interpreted kernels have no launcher to time")
    torch.set_num_threads(1)
    print("launcher without Triton's launch, microseconds a call on this processor")
    for name, microseconds in launcher_microseconds().items():
        print(f"  {name:30} {microseconds:6.1f}")
    print(f"\n{options.gpu}\n{predictions(GPUS[options.gpu])}")


if __name__ == "__main__":
    main()
