"""What the cost function knows of a GPU: its size from the driver, its rates from datasheets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch

from neq_kernels.kernels import interpreted


@dataclass(frozen=True)
class Device:
    """A GPU as the cost function sees it.

    Attributes:
        capability: compute capability.
        clock: cycles per nanosecond.
        processors: streaming multiprocessors.
        shared: bytes of shared memory one program may have.
        flops: floating-point operations per nanosecond of one multiprocessor, by arithmetic:
            "half" (16-bit inputs), "tf32", "ieee" (float32 without tensor cores).
        bandwidth: bytes per nanosecond from device memory.
        cache: bytes per nanosecond from the L2 cache to one multiprocessor.
    """

    capability: tuple[int, int]
    clock: float
    processors: int
    shared: int
    flops: dict[str, float]
    bandwidth: float
    cache: float

    def __hash__(self) -> int:
        return hash((self.capability, self.processors, self.shared))


def _device(
    capability: tuple[int, int], processors: int, shared_kib: int, clock: float,
    per_clock: tuple[int, int, int], bandwidth: float, cache: float,
) -> Device:  # fmt: skip
    rates = (clock * flops for flops in per_clock)
    arithmetics = ("half", "tf32", "ieee")
    return Device(
        capability, clock, processors, shared_kib << 10, dict(zip(arithmetics, rates, strict=True)),
        bandwidth, clock * cache,
    )  # fmt: skip


# Dense rates with float32 accumulation and the memory's bandwidth, from the vendor's datasheets;
# bytes per clock from L2 are what the vendor's papers give for the whole chip, shared out evenly.
A100 = _device((8, 0), 108, 163, 1.41, (2048, 1024, 128), 2039, 47)
RTX_3090 = _device((8, 6), 82, 99, 1.70, (512, 256, 256), 936, 32)
RTX_4090 = _device((8, 9), 128, 99, 2.52, (512, 256, 256), 1008, 32)
H200 = _device((9, 0), 132, 227, 1.83, (4096, 2048, 256), 4800, 40)
B200 = _device((10, 0), 148, 227, 1.85, (8192, 4096, 256), 8000, 40)
RTX_5090 = _device((12, 0), 170, 99, 2.41, (512, 256, 256), 1792, 32)
KNOWN = (A100, RTX_3090, RTX_4090, H200, B200, RTX_5090)

# Settled when triton is imported, which comes first where a kernel is called.
_INTERPRETED = interpreted()


def device_of(tensor: torch.Tensor) -> Device:
    """The GPU that holds ``tensor``; for an interpreted kernel, an H200 stands in."""
    return H200 if _INTERPRETED else _describe(tensor.get_device())


@cache
def _describe(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    like = nearest(capability)
    shared = getattr(properties, "shared_memory_per_block_optin", like.shared)
    processors = properties.multi_processor_count
    return replace(like, capability=capability, processors=processors, shared=shared)


def nearest(capability: tuple[int, int]) -> Device:
    """The known device of the highest capability that is not above ``capability``."""
    return max(
        (d for d in KNOWN if d.capability <= capability), key=lambda d: d.capability, default=A100
    )
