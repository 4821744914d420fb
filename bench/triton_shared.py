"""What the benches of the Triton kernels share where there is no GPU: predictions and launchers.

A prediction is the cost function's, never a measurement, and every table says so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from unittest import mock

import torch

from neq_kernels import kernels
from neq_kernels.active import Lists, lists
from neq_kernels.kernels import device
from neq_kernels.kernels.configuration import Configuration

SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)
GPUS = {"A100": device.A100, "H200": device.H200, "B200": device.B200}


def head(operator: str) -> str:
    """The head of a table of predictions for ``operator``."""
    columns = f"{'tile':>11} {'split':>5} {'us':>8} {'roofline us':>11} {'reached':>7}"
    return f"{f'PREDICTED, not measured: {operator}, bfloat16':62} {'active':>6} {columns}"


def row(
    name: str, share: float, chosen: Configuration, nanoseconds: float, flops: float, moved: float,
    gpu: device.Device,
) -> str:  # fmt: skip
    """A line of it: predicted time beside the least for so many FLOPs and bytes."""
    roofline = max(flops / (gpu.flops["half"] * gpu.processors), moved / gpu.bandwidth)
    tile = f"{chosen.tile.rows}x{chosen.tile.columns}x{chosen.tile.depth}"
    return (
        f"{name:62} {share:6.0%} {tile:>11} {chosen.split:5} {nanoseconds / 1e3:8.1f} "
        f"{roofline / 1e3:11.1f} {roofline / nanoseconds:7.0%}"
    )


def channels(size: int, count: int) -> Lists:
    """The lists of ``count`` of ``size`` channels."""
    index = torch.full((size,), -1, dtype=torch.int32)
    index[:count] = torch.arange(0, size, size // count)[:count]
    return lists(index, torch.tensor(count))


@contextmanager
def without_launch() -> Iterator[None]:
    """Launchers do all but launch, as if on an H200."""
    from triton.runtime.jit import JITFunction

    with (
        mock.patch.object(JITFunction, "run", _nothing),
        mock.patch.object(device, "_describe", _stand_in),
    ):
        yield


def _nothing(*arguments: object, **options: object) -> None:
    """In place of Triton's launch; a mock would take longer than what is measured."""


def _stand_in(index: int) -> device.Device:
    return device.H200


def microseconds(way: Callable[[], object], calls: int = 2000) -> float:
    """Median time of a call."""
    for _ in range(50):
        way()
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        way()
        times.append(time.perf_counter() - started)
    return median(times) * 1e6


def main(
    launchers: Callable[[], dict[str, float]],
    predictions: Callable[[device.Device], str],
    description: str | None,
    arguments: Sequence[str] | None,
) -> None:
    """Print the launchers' times here, and what is predicted for a GPU."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--gpu", choices=GPUS, default="H200", help="whose times to predict")
    options = parser.parse_args(arguments)
    if kernels.interpreted():
        raise SystemExit("TRITON_INTERPRET is set: interpreted kernels have no launcher to time")
    torch.set_num_threads(1)
    print("launcher without Triton's launch, microseconds a call on this processor")
    for name, spent in launchers().items():
        print(f"  {name:38} {spent:6.1f}")
    print(f"\n{options.gpu}\n{predictions(GPUS[options.gpu])}")
