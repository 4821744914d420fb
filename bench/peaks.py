"""What a device can do at most, measured where the rest is measured, and the least time that leaves
a layer's gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.cases import Case
from bench.harness import Provider, interleave

MIB = 1 << 20
# A copy far larger than any cache, and a product that fills any GPU; a processor takes less.
COPIED = {"cuda": 1024 * MIB, "cpu": 32 * MIB}
SIDE = {"cuda": 8192, "cpu": 256}


@dataclass(frozen=True)
class Peaks:
    """Bytes read and written by a plain copy, and operations of a square product, by dtype."""

    gb_s: float
    tflop_s: dict[str, float]

    @classmethod
    def measure(cls, device: str, dtypes: tuple[torch.dtype, ...], seconds: float = 0.3) -> Peaks:
        """The best rates, on random numbers: zeros multiply faster on some devices."""
        kind = torch.device(device).type
        source = torch.randn(COPIED[kind] // 4, device=device)
        target = torch.empty_like(source)
        copy = _fastest(lambda i: target.copy_(source), seconds, device)
        rates = {}
        for dtype in dtypes:
            a, b = torch.randn(2, SIDE[kind], SIDE[kind], device=device, dtype=dtype).unbind()
            product = _fastest(lambda i, a=a, b=b: a @ b, seconds, device)
            rates[str(dtype).removeprefix("torch.")] = 2 * SIDE[kind] ** 3 / product / 1e9
        return cls(2 * source.nbytes / copy / 1e6, rates)

    def roofline_ms(self, case: Case, share: float, dx: bool, propagate: str) -> float:
        """The least time of ``case``'s gradients: every operand moved once, only what the active
        share of the neurons needs."""
        weight_bytes = _count(case, "weight") * case.dtype.itemsize
        x_bytes = _count(case, "x") * case.dtype.itemsize
        dy_bytes = _count(case, "y") * case.dtype.itemsize
        through_all = dx and propagate == "all"
        operations = share + (1.0 if through_all else share * dx)
        moved = dy_bytes * (1.0 if through_all else share) + x_bytes + weight_bytes
        if dx:
            moved += x_bytes + weight_bytes * (1.0 if through_all else share)
        rate = self.tflop_s[str(case.dtype).removeprefix("torch.")]
        return max(2 * operations * case.macs() / rate / 1e9, moved / self.gb_s / 1e6)


def _fastest(run, seconds: float, device: str) -> float:  # type: ignore[no-untyped-def]
    return interleave({"it": Provider(run)}, seconds=seconds, device=device)["it"].p20


def _count(case: Case, what: str) -> int:
    """Elements of the input, the weight or the output."""
    a, sizes = case.arguments, 1
    for size in case.input:
        sizes *= size
    if what == "x":
        return sizes
    fan_in = a["inputs"] if case.kind != "conv" else a["inputs"] // a["groups"] * a["kernel"] ** 2
    weight = fan_in * a["outputs"]
    return weight if what == "weight" else case.macs() // fan_in
