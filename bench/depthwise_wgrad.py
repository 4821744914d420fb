"""depthwise_wgrad against aten's full weight gradient: python -m bench.depthwise_wgrad

Shapes are MobileNetV2's depthwise convolutions. "reading" sums X and dY, what any way costs that
looks at all of them; the ceiling is that time, in NCHW its active share. "packing" copies active
channels of both with pack_channels, and nothing more: in NCHW, short runs of memory, which
take longer to reach than their share of a stream.

The targets are judged at the end: with all channels active no slower than aten; with 10 % of them 5
times as fast as aten's full gradient in NCHW, and at least 0.7 of the speed of reading in
channels_last, where nearly every line of memory holds an active channel.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from bench.harness import (
    Provider,
    Row,
    apart,
    input_sets,
    interleave,
    noise,
    noise_verdict,
    results_path,
    table,
    write_csv,
)
from bench.pack_channels import keep_freed_memory
from neq_kernels import native

SHARES = (1.0, 0.5, 0.1)
FEW = 0.1


@dataclass(frozen=True)
class Shape:
    batch: int
    channels: int
    side: int
    stride: int

    def make(
        self, dtype: torch.dtype, layout: torch.memory_format, device: str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """(x, dy) of a 3x3 convolution with padding 1."""
        out = -(-self.side // self.stride)
        sizes = [(self.batch, self.channels, side, side) for side in (self.side, out)]
        x, dy = (
            torch.randn(size, device=device).to(dtype).contiguous(memory_format=layout)
            for size in sizes
        )
        return x, dy

    def __str__(self) -> str:
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        return f"3x3{stride} @ {self.batch}x{self.channels}x{self.side}x{self.side}"


SMALL = [(32, 48, 1), (96, 48, 2), (144, 24, 1), (144, 24, 2), (192, 12, 1), (192, 12, 2),
         (384, 6, 1), (576, 6, 1), (576, 6, 2), (960, 3, 1)]  # fmt: skip
LARGE = [(32, 112, 1), (96, 112, 2), (144, 56, 1), (144, 56, 2), (192, 28, 1), (192, 28, 2),
         (384, 14, 1), (576, 14, 1), (576, 14, 2), (960, 7, 1)]  # fmt: skip
SHAPES = [Shape(16, *rest) for rest in SMALL] + [Shape(8, *rest) for rest in LARGE]


def _aten(sets: list[tuple[Tensor, Tensor]], weight: Tensor, stride: int, i: int) -> None:
    x, dy = sets[i]
    channels = weight.shape[0]
    torch.ops.aten.convolution_backward(
        dy, x, weight, [channels], [stride] * 2, [1, 1], [1, 1], False, [0, 0], channels,
        [False, True, True],
    )  # fmt: skip


def _ours(
    sets: list[tuple[Tensor, Tensor]], weight: Tensor, index: Tensor, stride: int, i: int
) -> None:
    x, dy = sets[i]
    torch.ops.neq_kernels.depthwise_wgrad(
        dy, x, weight, index, index.numel(), [stride] * 2, [1, 1], [1, 1], True
    )


def _pack(sets: list[tuple[Tensor, Tensor]], index: Tensor, i: int) -> None:
    for tensor in sets[i]:
        torch.ops.neq_kernels.pack_channels(tensor, index, index.numel(), 1, False)


def _read(sets: list[tuple[Tensor, Tensor]], i: int) -> None:
    for tensor in sets[i]:
        tensor.sum()


def measure(
    shape: Shape, dtype: torch.dtype, layout: torch.memory_format, seconds: float,
    device: str = "cpu",
) -> list[Row]:  # fmt: skip
    """A row per provider and share, all in one interleaved run."""
    nbytes = sum(tensor.nbytes for tensor in shape.make(dtype, layout, device))
    sets = [shape.make(dtype, layout, device) for _ in range(input_sets(nbytes))]
    weight = torch.randn(shape.channels, 1, 3, 3, device=device).to(dtype)
    counts = {share: max(1, round(share * shape.channels)) for share in SHARES}
    ways = {"aten": partial(_aten, sets, weight, shape.stride), "reading": partial(_read, sets)}
    for share, count in counts.items():
        index = torch.randperm(shape.channels)[:count].sort().values.int().to(device)
        ways[f"{share:.0%}"] = partial(_ours, sets, weight, index, shape.stride)
        if share == FEW:
            ways["packing"] = partial(_pack, sets, index)
    timings = interleave(apart(ways, len(sets)), sets=len(sets), seconds=seconds, device=device)
    dense, reading = timings["aten"].median, timings["reading"].median
    last = layout == torch.channels_last
    rows = []
    for name, timing in timings.items():
        share = next((s for s in SHARES if f"{s:.0%}" == name), None)
        part = 1.0 if share is None or last else counts[share] / shape.channels
        rows.append(
            Row(
                operator="depthwise_wgrad", geometry=str(shape),
                dtype=str(dtype).split(".")[1], layout="channels_last" if last else "nchw",
                active=counts[FEW if name == "packing" else share or 1.0] / shape.channels,
                provider=name if share is None else "depthwise_wgrad", dense_ms=dense,
                ms=timing.median, p20=timing.p20, p80=timing.p80, speedup=dense / timing.median,
                ceiling_ms=None if share is None else reading * part,
                ceiling_share=None if share is None else reading * part / timing.median,
                path="" if share is None or device != "cpu" else native.cpu_isa(),
                gb_s=nbytes * part / timing.median / 1e6,
            )
        )  # fmt: skip
    return rows


@dataclass(frozen=True)
class Target:
    """A ratio of every row of a layout (of any, without one) with a share of active channels."""

    text: str
    layout: str | None
    share: float
    ratio: Callable[[Row], float | None]
    least: float

    def verdict(self, rows: Sequence[Row]) -> str:
        """How many rows reach it, and by how much the others miss it."""
        ratios = {
            f"{row.geometry}{'' if self.layout else f' {row.layout}'}": self.ratio(row) or 0.0
            for row in rows
            if row.provider == "depthwise_wgrad"
            and (self.layout or row.layout) == row.layout
            and abs(row.active - self.share) < 0.05
        }
        missed = {name: ratio for name, ratio in ratios.items() if ratio < self.least}
        text = f"{self.text}: {len(ratios) - len(missed)} of {len(ratios)} rows"
        worst = ", ".join(f"{name} {ratio:.2f}" for name, ratio in missed.items())
        return f"{text}; below it {worst}" if missed else text


TARGETS = (
    Target("100 %, at least as fast as aten", None, 1.0, lambda row: row.speedup, 1.0),
    Target("10 %, NCHW, 5 times as fast as aten", "nchw", FEW, lambda row: row.speedup, 5.0),
    Target("10 %, channels_last, 0.7 of the speed of reading", "channels_last", FEW,
           lambda row: row.ceiling_share, 0.7),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="batch 16 at 96x96 only")
    parser.add_argument("--seconds", type=float, default=1.5, help="per geometry and layout")
    parser.add_argument("--threads", type=int, help="torch's, by default as many as it likes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    if not native.available():
        raise SystemExit(native.why_not())
    dtype, device = getattr(torch, arguments.dtype), arguments.device
    sets = [Shape(16, 144, 24, 1).make(dtype, torch.channels_last, device)]
    weight = torch.randn(144, 1, 3, 3, device=device).to(dtype)
    print(noise_verdict(noise(Provider(lambda i: _aten(sets, weight, 1, 0)), device=device)))
    rows = []
    for shape in tqdm(SHAPES[: len(SMALL)] if arguments.quick else SHAPES, disable=None):
        for layout in (torch.contiguous_format, torch.channels_last):
            measured = measure(shape, dtype, layout, arguments.seconds, device)
            tqdm.write(table(measured) + "\n")
            rows += measured
    for target in TARGETS:
        print(target.verdict(rows))
    path = arguments.output or results_path("depthwise_wgrad", device)
    write_csv(path, rows, device)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
