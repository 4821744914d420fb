"""Similarity of a neuron's output with its output one pass earlier (NEq, arXiv 2207.09455).

phi = sum(a * b) / sqrt(sum(a * a) * sum(b * b)), per channel: over all samples and positions, or
over the positions of each sample and then in the mean.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from neq_kernels import backends


class Similarity(Protocol):
    """Accumulates the similarity of one layer's neurons over a pass."""

    def update(self, previous: Tensor, current: Tensor, axis: int) -> None:
        """Take in one pair of outputs of equal shape, with the neurons along `axis`."""

    def sums(self) -> Tensor | None:
        """What was summed up so far, fp64 `[rows, C]`, to be added to that of other processes; None
        if nothing was compared."""

    def value(self, sums: Tensor) -> Tensor:
        """The similarity of every neuron, fp64 `[C]`, from its sums."""

    rows: int


class ConcatenatedCosine:
    """One cosine per neuron over everything it put out, as if concatenated (the paper's text)."""

    rows = 3

    def __init__(self) -> None:
        self._moments: Tensor | None = None

    def update(self, previous: Tensor, current: Tensor, axis: int) -> None:
        _, channel_moments = backends.resolve("channel_moments", current.device.type, current.dtype)
        moments = channel_moments(previous, current, axis, False)
        self._moments = moments if self._moments is None else self._moments + moments

    def sums(self) -> Tensor | None:
        return self._moments

    def value(self, sums: Tensor) -> Tensor:
        return cosine(*sums.unbind())


class MeanCosine:
    """A cosine per sample over its positions, in the mean over all samples (the authors' code).

    Outputs with a single scalar per sample and neuron, such as `[B, C]`, have no positions to
    compare: there it is one cosine over all samples. With one position, as in `[B, C, 1, 1]`, each
    cosine is but the agreement of two signs.
    """

    # The sum of the cosines and their number; the moments of scalars and their number.
    rows = 6

    def __init__(self) -> None:
        self._scalars = ConcatenatedCosine()
        self._sum: Tensor | None = None
        self._samples = {"scalar": 0, "positions": 0}

    def update(self, previous: Tensor, current: Tensor, axis: int) -> None:
        axis %= current.dim()
        if current.dim() - axis == 1 and current.dim() <= 2:
            self._samples["scalar"] += current.numel() // current.shape[axis]
            self._scalars.update(previous, current, axis)
            return
        if axis == 0:  # no batch dimension: one sample
            previous, current, axis = previous.unsqueeze(0), current.unsqueeze(0), 1
        _, channel_moments = backends.resolve("channel_moments", current.device.type, current.dtype)
        cosines = cosine(*channel_moments(previous, current, axis, True)).sum(0)
        self._sum = cosines if self._sum is None else self._sum + cosines
        self._samples["positions"] += current.shape[0]

    def sums(self) -> Tensor | None:
        moments, summed = self._scalars.sums(), self._sum
        if summed is None and moments is None:
            return None
        some = summed if summed is not None else moments
        assert some is not None
        sums = torch.zeros(self.rows, some.shape[-1], dtype=torch.float64, device=some.device)
        if summed is not None:
            sums[0] = summed
            sums[1] = self._samples["positions"]
        if moments is not None:
            sums[2:5] = moments
            sums[5] = self._samples["scalar"]
        return sums

    def value(self, sums: Tensor) -> Tensor:
        cosines, positions, scalars = sums[0], sums[1], sums[5]
        alike = self._scalars.value(sums[2:5])
        # A layer called in both ways: each sample counts once.
        shared = (cosines + alike * scalars) / (positions + scalars)
        return torch.where(positions == 0, alike, shared)


def cosine(ab: Tensor, aa: Tensor, bb: Tensor) -> Tensor:
    """Cosine from its three sums; 1 where both vectors are zero, 0 where exactly one is."""
    # Of equal vectors exactly 1: a product of two roots would be off by a rounding.
    norms = torch.where(aa == bb, aa, aa.sqrt() * bb.sqrt())
    phi = (ab / norms).clamp(-1, 1)
    phi = torch.where((aa == 0) ^ (bb == 0), torch.zeros_like(phi), phi)
    return torch.where((aa == 0) & (bb == 0), torch.ones_like(phi), phi)
