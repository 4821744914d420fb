"""``python -m neq_kernels bench``: what freezing gains in typical layers, on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from neq_kernels.profile import LayerTime, Profile, profile
from neq_kernels.profile.result import table

SHARES = (1.0, 0.5, 0.25, 0.1)
# Samples on a CPU; a GPU needs more to be filled.
CUDA_FACTOR = 16


@dataclass(frozen=True)
class Case:
    """A layer and one sample of its input, without the sample dimension."""

    name: str
    layer: Callable[[], nn.Module]
    sample: tuple[int, ...]
    samples: int
    memory_format: torch.memory_format = torch.contiguous_format


CASES = (
    Case("ViT-B MLP 768 -> 3072", lambda: nn.Linear(768, 3072), (197, 768), 4),
    Case("ViT-B projection 768 -> 768", lambda: nn.Linear(768, 768), (197, 768), 4),
    Case("GPT-2 MLP 4096 -> 1024", lambda: nn.Linear(4096, 1024), (256, 4096), 2),
    Case("conv 3x3, 64 at 56x56", lambda: _conv(64, 64, 3), (64, 56, 56), 4),
    Case("conv 3x3, 128 at 28x28", lambda: _conv(128, 128, 3), (128, 28, 28), 8),
    Case(
        "conv 3x3, 128 at 28x28, channels_last", lambda: _conv(128, 128, 3), (128, 28, 28), 8,
        torch.channels_last,
    ),
    Case("conv 3x3, 256 at 14x14", lambda: _conv(256, 256, 3), (256, 14, 14), 8),
    Case("conv 1x1, 256 -> 64 at 28x28", lambda: _conv(256, 64, 1), (256, 28, 28), 8),
    Case("depthwise 3x3, 144 at 24x24", lambda: _conv(144, 144, 3, 144), (144, 24, 24), 16),
    Case("small linear 128 -> 128", lambda: nn.Linear(128, 128), (128,), 64),
)  # fmt: skip


def run(
    device: str | None = None,
    seconds: float = 0.15,
    cases: tuple[Case, ...] = CASES,
    show: Callable[[str], object] = print,
) -> tuple[LayerTime, ...]:
    """Measure each case and show a table as it grows; returns its rows.

    Args:
        device: torch's name of it; the first GPU if there is one, else the CPU.
        seconds: per layer and share.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    flushed = torch.set_flush_denormal(True)
    show(f"{describe(device)}, {str(dtype).removeprefix('torch.')}, backward of one layer\n")
    rows: list[LayerTime] = []
    header, *_ = table([], max(len(case.name) for case in cases))
    show(header)
    try:
        for case in cases:
            found = _measure(case, device, dtype, seconds)
            named = [replace(row, name=case.name) for row in found.layers]
            rows += named
            for line in table(named, max(len(case.name) for case in cases))[1:]:
                show(line)
    finally:
        if flushed:
            torch.set_flush_denormal(False)
    return tuple(rows)


def describe(device: str) -> str:
    """The device and how many threads it runs, for a heading."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def _conv(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)


def _measure(case: Case, device: str, dtype: torch.dtype, seconds: float) -> Profile:
    factor = CUDA_FACTOR if device.startswith("cuda") else 1
    layer: nn.Module = nn.Sequential(case.layer()).to(device, dtype)
    x = torch.randn(case.samples * factor, *case.sample, device=device, dtype=dtype)
    if case.memory_format != torch.contiguous_format:
        x = x.contiguous(memory_format=case.memory_format)
        layer.to(memory_format=case.memory_format)  # type: ignore[call-overload]
    return profile(layer, x.requires_grad_(), SHARES, seconds=seconds, progress=False)
