"""Similarity of a neuron's output with its output one pass earlier (NEq, arXiv 2207.09455).

phi = sum(a * b) / sqrt(sum(a * a) * sum(b * b)), per channel, over all samples and positions.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

# Elements widened to fp64 at once: what fits a cache, on devices what keeps memory low.
CHUNK = {"cpu": 1 << 17, "cuda": 1 << 24}


class Similarity(Protocol):
    """Accumulates the similarity of one layer's neurons over a pass."""

    def update(self, previous: Tensor, current: Tensor, axis: int) -> None:
        """Take in one pair of outputs of equal shape, with the neurons along `axis`."""

    def value(self) -> Tensor:
        """The similarity of every neuron so far, fp64 `[C]`."""


class ConcatenatedCosine:
    """One cosine per neuron over everything it put out, as if concatenated (the paper's text)."""

    def __init__(self) -> None:
        self._moments: Tensor | None = None

    def update(self, previous: Tensor, current: Tensor, axis: int) -> None:
        moments = torch.stack(channel_moments(previous, current, axis))
        self._moments = moments if self._moments is None else self._moments + moments

    def value(self) -> Tensor:
        if self._moments is None:
            raise RuntimeError("similarity: no outputs were compared; call update() first")
        return cosine(*self._moments.unbind())


def channel_moments(a: Tensor, b: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of a*b, a*a and b*b per channel, each fp64 `[C]`, where C = a.size(axis).

    Products and sums are fp64 whatever the inputs are: near 1, where equilibrium is decided, sums
    in fp32 would blur the differences of 1e-6 that epsilon has to tell apart.
    """
    axis %= a.dim()
    others = [dim for dim in range(a.dim()) if dim != axis]
    sums = torch.zeros(3, a.size(axis), dtype=torch.float64, device=a.device)
    for left, right in _chunks(a, b, axis):
        left, right = left.double(), right.double()
        for total, product in zip(sums, (left * right, left.square(), right.square()), strict=True):
            total += product.sum(others) if others else product
    return sums[0], sums[1], sums[2]


def _chunks(a: Tensor, b: Tensor, axis: int) -> list[tuple[Tensor, Tensor]]:
    """Slices of both tensors along the samples, so that the fp64 copies stay small."""
    chunk = CHUNK.get(a.device.type, CHUNK["cuda"])
    if axis == 0 or a.numel() <= chunk:
        return [(a, b)]
    samples = max(1, chunk * a.size(0) // a.numel())
    return list(zip(a.split(samples), b.split(samples), strict=True))


def cosine(ab: Tensor, aa: Tensor, bb: Tensor) -> Tensor:
    """Cosine from its three sums; 1 where both vectors are zero, 0 where exactly one is."""
    phi = (ab / (aa.sqrt() * bb.sqrt())).clamp(-1, 1)
    phi = torch.where((aa == 0) ^ (bb == 0), torch.zeros_like(phi), phi)
    return torch.where((aa == 0) & (bb == 0), torch.ones_like(phi), phi)
