"""The weight gradient of a convolution on a CPU, every way there is: python -m bench.conv_wgrad

"aten" computes all rows; "packed" packs the active channels of dY and has aten compute theirs;
"aten, packed" is aten's part of that alone; "direct" is the native kernel for few active channels.
The ceiling is the active share of aten's time.
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
from neq_kernels import backends, native, reference
from neq_kernels.active import Lists, lists

SHARES = (0.5, 0.25, 0.1)


@dataclass(frozen=True)
class Shape:
    """A square convolution; ``side`` is the output's."""

    batch: int
    inputs: int
    outputs: int
    kernel: int
    side: int
    stride: int = 1

    @property
    def window(self) -> tuple[list[int], list[int], list[int]]:
        return [self.stride] * 2, [self.kernel // 2] * 2, [1, 1]

    def make(self, dtype: torch.dtype, layout: torch.memory_format) -> tuple[Tensor, Tensor]:
        """(x, dy)"""
        sizes = (self.inputs, self.side * self.stride), (self.outputs, self.side)
        x, dy = (
            torch.randn(self.batch, channels, side, side).to(dtype).contiguous(memory_format=layout)
            for channels, side in sizes
        )
        return x, dy

    def __str__(self) -> str:
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        kernel = f"{self.kernel}x{self.kernel}"
        return (
            f"{kernel}{stride} {self.inputs}->{self.outputs} @ {self.batch}x{self.side}x{self.side}"
        )


SHAPES = (
    Shape(128, 16, 16, 3, 32), Shape(128, 32, 32, 3, 16), Shape(128, 64, 64, 3, 8),
    Shape(8, 64, 64, 3, 56), Shape(8, 128, 128, 3, 28), Shape(8, 256, 256, 3, 14),
    Shape(8, 512, 512, 3, 7), Shape(8, 128, 256, 3, 14, 2), Shape(8, 256, 64, 1, 28),
    Shape(8, 64, 256, 1, 28), Shape(8, 512, 128, 1, 14), Shape(8, 1024, 256, 1, 7),
)  # fmt: skip
QUICK = 3


def _aten(shape: Shape, sets: list[tuple[Tensor, Tensor]], weight: Tensor, i: int) -> None:
    x, dy = sets[i]
    reference.conv_gradients(dy, x, weight, shape.window, 1, (False, True))


def _rows(
    way: Callable[..., object],
    shape: Shape,
    sets: list[tuple[Tensor, Tensor]],
    weight: Tensor,
    channels: Lists,
    i: int,
) -> None:
    x, dy = sets[i]
    way(dy, x, weight, channels, False, *shape.window, 1)


def measure(
    shape: Shape, dtype: torch.dtype, layout: torch.memory_format, share: float, seconds: float
) -> list[Row]:
    """A row per provider, all in one interleaved run."""
    first = shape.make(dtype, layout)
    sets = [first]
    sets += [
        (first[0].clone(), first[1].clone())
        for _ in range(input_sets(sum(t.nbytes for t in first)) - 1)
    ]
    count = max(1, round(share * shape.outputs))
    index = torch.randperm(shape.outputs)[:count].sort().values.int()
    padded = torch.full((shape.outputs,), -1, dtype=torch.int32)
    padded[:count] = index
    channels = lists(padded, torch.tensor(count))
    sizes = shape.inputs, shape.kernel, shape.kernel
    weight = torch.randn(shape.outputs, *sizes).to(dtype).contiguous(memory_format=layout)
    width = min(-(-count // reference.BLOCK) * reference.BLOCK, shape.outputs)
    kept = weight[:width].contiguous(memory_format=layout)
    packed = [(x, dy[:, :width].contiguous(memory_format=layout)) for x, dy in sets]
    kind = "cpu", dtype, 2
    ways: dict[str, Callable[[int], object]] = {
        "aten": partial(_aten, shape, sets, weight),
        "aten, packed": partial(_aten, shape, packed, kept),
    }
    for name, way in (
        ("packed", backends.resolve("conv_wgrad", *kind)[1]),
        ("direct", backends.direct("conv_wgrad", *kind)),
    ):
        ways[name] = partial(_rows, way, shape, sets, weight, channels)
    timings = interleave(apart(ways, len(sets)), sets=len(sets), seconds=seconds)
    dense = timings["aten"].median
    part = count / shape.outputs
    flops = 2 * shape.batch * shape.side**2 * weight.numel() * part
    return [
        Row(
            operator="conv_wgrad", geometry=str(shape), dtype=str(dtype).split(".")[1],
            layout="channels_last" if layout == torch.channels_last else "nchw",
            active=1.0 if name == "aten" else part, provider=name, dense_ms=dense,
            ms=timing.median, p20=timing.p20, p80=timing.p80, speedup=dense / timing.median,
            ceiling_ms=None if name == "aten" else dense * part,
            ceiling_share=None if name == "aten" else dense * part / timing.median,
            path=native.cpu_isa() if name == "direct" else "",
            tflop_s=(flops / part if name == "aten" else flops) / timing.median / 1e9,
        )
        for name, timing in timings.items()
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="ResNet-32's at a tenth active only")
    parser.add_argument("--seconds", type=float, default=0.5, help="per shape, layout and share")
    parser.add_argument("--threads", type=int, help="torch's, by default as many as it likes")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    if not native.available():
        raise SystemExit(native.why_not())
    dtype = getattr(torch, arguments.dtype)
    shape = SHAPES[0]
    sets = [shape.make(dtype, torch.contiguous_format)]
    weight = torch.randn(shape.outputs, shape.inputs, shape.kernel, shape.kernel).to(dtype)
    print(noise_verdict(noise(Provider(lambda i: _aten(shape, sets, weight, 0)))))
    rows = []
    for shape in tqdm(SHAPES[:QUICK] if arguments.quick else SHAPES, disable=None):
        for layout in (torch.contiguous_format, torch.channels_last):
            for share in SHARES[-1:] if arguments.quick else SHARES:
                measured = measure(shape, dtype, layout, share, arguments.seconds)
                tqdm.write(table(measured) + "\n")
                rows += measured
    path = arguments.output or results_path("conv_wgrad")
    write_csv(path, rows)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
