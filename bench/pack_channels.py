"""pack_channels against a plain copy and against index_select: python -m bench.pack_channels

Bytes count all of dY read (of NCHW the cache lines of the active planes) and the packed tensor
written; the ceiling is the time a plain copy would take for as many, from and to memory that the
cache has forgotten. A fresh tensor of this size costs more in page faults than in work, for every
provider alike: unless --fresh, freed memory stays with the process, as an allocator made for
training keeps it; a packed tensor smaller than the cache is then written there.
"""

from __future__ import annotations

import argparse
import ctypes
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
from neq_kernels import native

SHARES = (1.0, 0.5, 0.1)
MIB = 1 << 20
LINE = 64
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class Shape:
    """dY of about ``mib`` MiB; ``side`` 0 means [tokens, channels]."""

    layout: str
    channels: int
    side: int
    mib: int

    def make(self, dtype: torch.dtype, device: str = "cpu") -> Tensor:
        each = self.channels * max(1, self.side**2) * dtype.itemsize
        shape = [self.mib * MIB // each, self.channels, *([self.side] * 2 if self.side else [])]
        dy = torch.randn(shape, device=device).to(dtype)
        return dy.contiguous(memory_format=torch.channels_last) if self._last() else dy

    def bytes_read(self, dy: Tensor, index: Tensor) -> int:
        if self._last() or not self.side:
            return dy.nbytes
        plane = self.side**2 * dy.element_size()
        starts = (torch.arange(dy.shape[0])[:, None] * dy.shape[1] + index.cpu()) * plane
        lines = (starts + plane - 1) // LINE - starts // LINE + 1
        return int(lines.sum()) * LINE

    def __str__(self) -> str:
        side = f", {self.side}x{self.side}" if self.side else ""
        return f"{self.mib} MiB, {self.channels} channels{side}"

    def _last(self) -> bool:
        return self.layout == "channels_last"


KINDS = [("tokens", 768, 0), ("channels_last", 256, 14), ("channels_last", 64, 56),
         ("nchw", 256, 14), ("nchw", 64, 56)]  # fmt: skip


def keep_freed_memory() -> None:
    """glibc: neither map big tensors separately nor give memory back."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _native(inputs: list[Tensor], index: Tensor, bias: bool, i: int) -> None:
    torch.ops.neq_kernels.pack_channels(inputs[i], index, index.numel(), 1, bias)


def _selected(inputs: list[Tensor], index: Tensor, bias: bool, i: int) -> None:
    packed = inputs[i].index_select(1, index)
    if bias:
        packed.sum([d for d in range(packed.dim()) if d != 1])


def providers(inputs: list[Tensor], index: Tensor) -> dict[str, Provider]:
    copies = [torch.empty_like(inputs[0]) for _ in range(input_sets(inputs[0].nbytes))]
    ways: dict[str, Callable[[int], object]] = {
        "plain copy": lambda i: copies[i % len(copies)].copy_(inputs[i]),
        "index_select": partial(_selected, inputs, index, False),
        "pack_channels": partial(_native, inputs, index, False),
        "index_select, sum": partial(_selected, inputs, index, True),
        "pack_channels, bias": partial(_native, inputs, index, True),
    }
    return apart(ways, len(inputs))


def measure(
    shape: Shape, dtype: torch.dtype, share: float, seconds: float, device: str = "cpu"
) -> list[Row]:
    """A row per provider; dense is index_select, with the sum where ours has the bias."""
    count = max(1, round(shape.channels * share))
    index = torch.randperm(shape.channels)[:count].sort().values.int().to(device)
    inputs = [shape.make(dtype, device)]
    read = shape.bytes_read(inputs[0], index)
    inputs += [inputs[0].clone() for _ in range(input_sets(read) - 1)]
    timings = interleave(providers(inputs, index), sets=len(inputs), seconds=seconds, device=device)
    dy = inputs[0]
    moved = read + dy.nbytes // dy.shape[1] * count
    rows = []
    for name, timing in timings.items():
        rival = {"pack_channels": "index_select", "pack_channels, bias": "index_select, sum"}
        dense = timings[rival.get(name, name)].median
        nbytes = 2 * dy.nbytes if name == "plain copy" else moved
        ceiling = timings["plain copy"].median * nbytes / (2 * dy.nbytes)
        rows.append(
            Row(
                operator="pack_channels", geometry=str(shape), dtype=str(dtype).split(".")[1],
                layout=shape.layout, active=share, provider=name, dense_ms=dense,
                ms=timing.median, p20=timing.p20, p80=timing.p80, speedup=dense / timing.median,
                ceiling_ms=ceiling, ceiling_share=ceiling / timing.median,
                path=native.cpu_isa() if name.startswith("pack") and device == "cpu" else "",
                gb_s=nbytes / timing.median / 1e6,
            )
        )  # fmt: skip
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="32 MiB only")
    parser.add_argument("--seconds", type=float, default=1.0, help="per geometry and share")
    parser.add_argument("--threads", type=int, help="torch's, by default as many as it likes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fresh", action="store_true", help="pay for every tensor's page faults")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if not arguments.fresh:
        keep_freed_memory()
    if not native.available():
        raise SystemExit(native.why_not())
    device = arguments.device
    inputs = [Shape("tokens", 256, 0, 32).make(torch.float32, device)]
    copy = providers(inputs, torch.arange(1, device=device))["plain copy"]
    print(noise_verdict(noise(copy, device=device)).replace("dense", "a plain copy"))
    rows = []
    sizes = (32,) if arguments.quick else (8, 32, 128, 256)
    shapes = [Shape(*kind, size) for size in sizes for kind in KINDS]
    for shape in tqdm(shapes, disable=None):
        for dtype in (torch.float32, torch.bfloat16):
            measured = [
                row
                for share in SHARES
                for row in measure(shape, dtype, share, arguments.seconds, device)
            ]
            tqdm.write(table(measured) + "\n")
            rows += measured
    path = arguments.output or results_path("pack_channels", device)
    write_csv(path, rows, device)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
