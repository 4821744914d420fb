"""The weight gradient of a convolution on a CPU, every way there is: python -m bench.conv_wgrad

"aten" computes all rows; "packed" packs the active channels of dY and has aten compute theirs;
"aten, packed" is aten's part of that alone; "direct" is the native kernel, which packs nothing.
The ceiling is the active share of aten's time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Problem:
    """A convolution with some channels active, its inputs in as many copies as keep them cold.

    Attributes:
        sets: of (x, dy).
        packed: the same, dy of as many channels as packing makes.
        kept: as many rows of ``weight``.
    """

    shape: Shape
    layout: torch.memory_format
    sets: list[tuple[Tensor, Tensor]]
    packed: list[tuple[Tensor, Tensor]]
    weight: Tensor
    kept: Tensor
    channels: Lists

    @classmethod
    def make(
        cls, shape: Shape, dtype: torch.dtype, layout: torch.memory_format, share: float
    ) -> Problem:
        first = shape.make(dtype, layout)
        sets = [first]
        sets += [
            (first[0].clone(), first[1].clone())
            for _ in range(input_sets(sum(t.nbytes for t in first)) - 1)
        ]
        count = max(1, round(share * shape.outputs))
        padded = torch.full((shape.outputs,), -1, dtype=torch.int32)
        padded[:count] = torch.randperm(shape.outputs)[:count].sort().values
        sizes = shape.inputs, shape.kernel, shape.kernel
        weight = torch.randn(shape.outputs, *sizes).to(dtype).contiguous(memory_format=layout)
        width = min(-(-count // reference.BLOCK) * reference.BLOCK, shape.outputs)
        kept = weight[:width].contiguous(memory_format=layout)
        packed = [(x, dy[:, :width].contiguous(memory_format=layout)) for x, dy in sets]
        return cls(shape, layout, sets, packed, weight, kept, lists(padded, torch.tensor(count)))

    def aten(
        self, sets: Sequence[tuple[Tensor, Tensor]], weight: Tensor, needed: tuple[bool, bool]
    ) -> Callable[[int], object]:
        """torch's gradients (dX, dW), which of them are ``needed``."""

        def run(i: int) -> None:
            x, dy = sets[i]
            reference.conv_gradients(dy, x, weight, self.shape.window, 1, needed)

        return run

    def measure(
        self, operator: str, ways: Mapping[str, Callable[[int], object]], seconds: float
    ) -> list[Row]:
        """A row per way, all in one interleaved run."""
        sets, channels = len(self.sets), self.channels
        timings = interleave(apart(ways, sets), sets=sets, seconds=seconds)
        dense = timings["aten"].median
        part = channels.count / channels.size
        flops = 2 * self.shape.batch * self.shape.side**2 * self.weight.numel()
        return [
            Row(
                operator=operator, geometry=str(self.shape),
                dtype=str(self.weight.dtype).split(".")[1],
                layout="channels_last" if self.layout == torch.channels_last else "nchw",
                active=1.0 if name == "aten" else part, provider=name, dense_ms=dense,
                ms=timing.median, p20=timing.p20, p80=timing.p80, speedup=dense / timing.median,
                ceiling_ms=None if name == "aten" else dense * part,
                ceiling_share=None if name == "aten" else dense * part / timing.median,
                path=native.cpu_isa() if name == "direct" else "",
                tflop_s=(flops if name == "aten" else flops * part) / timing.median / 1e9,
            )
            for name, timing in timings.items()
        ]  # fmt: skip


def ways(problem: Problem) -> dict[str, Callable[[int], object]]:
    """Every way to the weight gradient."""
    kind = "cpu", problem.weight.dtype, 2
    packed = backends.resolve("conv_wgrad", *kind)[1]
    direct = backends.direct("conv_wgrad", *kind)

    def by(way: Callable[..., object]) -> Callable[[int], object]:
        def run(i: int) -> None:
            x, dy = problem.sets[i]
            way(dy, x, problem.weight, problem.channels, False, *problem.shape.window, 1)

        return run

    return {
        "aten": problem.aten(problem.sets, problem.weight, (False, True)),
        "aten, packed": problem.aten(problem.packed, problem.kept, (False, True)),
        "packed": by(packed),
        "direct": by(direct),
    }


def main(argv: Sequence[str] | None = None) -> None:
    run("conv_wgrad", ways, __doc__, argv)


def run(
    operator: str,
    ways: Callable[[Problem], Mapping[str, Callable[[int], object]]],
    about: str | None,
    argv: Sequence[str] | None,
) -> None:
    """Measure and write the rows of ``operator``, with the options of the command line."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n\n")[0])
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
    first = Problem.make(SHAPES[0], dtype, torch.contiguous_format, 1.0)
    print(noise_verdict(noise(Provider(ways(first)["aten"]))))
    rows = []
    for shape in tqdm(SHAPES[:QUICK] if arguments.quick else SHAPES, disable=None):
        for layout in (torch.contiguous_format, torch.channels_last):
            for share in SHARES[-1:] if arguments.quick else SHARES:
                problem = Problem.make(shape, dtype, layout, share)
                measured = problem.measure(operator, ways(problem), arguments.seconds)
                tqdm.write(table(measured) + "\n")
                rows += measured
    path = arguments.output or results_path(operator)
    write_csv(path, rows)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
