"""channel_moments against a plain copy and three torch reductions: python -m bench.channel_moments

Bytes count both inputs, read once; a plain copy of one of them moves as many, into memory that the
cache has forgotten, too. "three sums" is what torch does on its own in the tensors' dtype, in less
precision; "three sums, fp64" has the precision of ours, and is the specification.
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
from bench.pack_channels import MIB, keep_freed_memory
from neq_kernels import native, reference

KINDS = [
    ("tokens", 768, 0), ("channels_last", 256, 14), ("channels_last", 64, 56),
    ("channels_last", 16, 32), ("nchw", 256, 14), ("nchw", 64, 56), ("nchw", 512, 7),
]  # fmt: skip
SMALL = 1 / 64


@dataclass(frozen=True)
class Shape:
    """Each input of about ``mib`` MiB; ``side`` 0 means [tokens, channels]."""

    layout: str
    channels: int
    side: int
    mib: float

    def make(self, dtype: torch.dtype, device: str) -> Tensor:
        each = self.channels * max(1, self.side**2) * dtype.itemsize
        count = max(1, int(self.mib * MIB) // each)
        shape = [count, self.channels, *([self.side] * 2 if self.side else [])]
        x = torch.randn(shape, device=device).to(dtype)
        last = self.layout == "channels_last"
        return x.contiguous(memory_format=torch.channels_last) if last else x

    def __str__(self) -> str:
        side = f", {self.side}x{self.side}" if self.side else ""
        return f"2 x {self.mib:g} MiB, {self.channels} channels{side}"


def _native(pairs: list[Tensor], i: int) -> None:
    torch.ops.neq_kernels.channel_moments(*pairs[i], 1, False)


def _three_sums(pairs: list[Tensor], i: int) -> None:
    a, b = pairs[i]
    others = [d for d in range(a.dim()) if d != 1]
    (a * b).sum(others), (a * a).sum(others), (b * b).sum(others)


def _three_sums_fp64(pairs: list[Tensor], i: int) -> None:
    reference.channel_moments(*pairs[i], 1, False)


def providers(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Provider]:
    copies = [torch.empty_like(a) for a, _ in pairs]
    ways: dict[str, Callable[[int], object]] = {
        "plain copy": lambda i: copies[i].copy_(pairs[i][0]),
        "three sums": partial(_three_sums, pairs),
        "three sums, fp64": partial(_three_sums_fp64, pairs),
        "channel_moments": partial(_native, pairs),
    }
    return apart(ways, len(pairs))


def measure(shape: Shape, dtype: torch.dtype, seconds: float, device: str) -> list[Row]:
    """A row per provider; dense is torch's three sums."""
    sets = max(4, input_sets(int(2 * shape.mib * MIB)))
    pairs = [(shape.make(dtype, device), shape.make(dtype, device)) for _ in range(sets)]
    timings = interleave(providers(pairs), sets=sets, seconds=seconds, device=device)
    nbytes = 2 * pairs[0][0].nbytes
    dense, ceiling = timings["three sums"].median, timings["plain copy"].median
    return [
        Row(
            operator="channel_moments", geometry=str(shape), dtype=str(dtype).split(".")[1],
            layout=shape.layout, active=1.0, provider=name, dense_ms=dense, ms=timing.median,
            p20=timing.p20, p80=timing.p80, speedup=dense / timing.median, ceiling_ms=ceiling,
            ceiling_share=ceiling / timing.median,
            path=native.cpu_isa() if name == "channel_moments" and device == "cpu" else "",
            gb_s=nbytes / timing.median / 1e6,
        )
        for name, timing in timings.items()
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="16 KiB and 16 MiB only")
    parser.add_argument("--seconds", type=float, default=1.0, help="per geometry")
    parser.add_argument("--threads", type=int, help="torch's, by default as many as it likes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if not native.available():
        raise SystemExit(native.why_not())
    keep_freed_memory()
    device = arguments.device
    tokens = Shape("tokens", 256, 0, 32)
    copy = providers([(tokens.make(torch.float32, device),) * 2])["plain copy"]
    print(noise_verdict(noise(copy, device=device)).replace("dense", "a plain copy"))
    rows = []
    sizes = (SMALL, 16) if arguments.quick else (SMALL, 1, 4, 16, 64, 128)
    shapes = [Shape(*kind, size) for size in sizes for kind in KINDS]
    for shape in tqdm(shapes, disable=None):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            measured = measure(shape, dtype, arguments.seconds, device)
            tqdm.write(table(measured) + "\n")
            rows += measured
    path = arguments.output or results_path("channel_moments", device)
    write_csv(path, rows, device)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
