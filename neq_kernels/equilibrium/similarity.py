"""Similarity of a neuron's output with its output one pass earlier (NEq, arXiv 2207.09455).

phi = sum(a * b) / sqrt(sum(a * a) * sum(b * b)), per channel, over all samples and positions.
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

    def value(self) -> Tensor:
        """The similarity of every neuron so far, fp64 `[C]`."""


class ConcatenatedCosine:
    """One cosine per neuron over everything it put out, as if concatenated (the paper's text)."""

    def __init__(self) -> None:
        self._moments: Tensor | None = None

    def update(self, previous: Tensor, current: Tensor, axis: int) -> None:
        _, channel_moments = backends.resolve("channel_moments", current.device.type, current.dtype)
        moments = channel_moments(previous, current, axis, False)
        self._moments = moments if self._moments is None else self._moments + moments

    def value(self) -> Tensor:
        if self._moments is None:
            raise RuntimeError("similarity: no outputs were compared; call update() first")
        return cosine(*self._moments.unbind())


def cosine(ab: Tensor, aa: Tensor, bb: Tensor) -> Tensor:
    """Cosine from its three sums; 1 where both vectors are zero, 0 where exactly one is."""
    phi = (ab / (aa.sqrt() * bb.sqrt())).clamp(-1, 1)
    phi = torch.where((aa == 0) ^ (bb == 0), torch.zeros_like(phi), phi)
    return torch.where((aa == 0) & (bb == 0), torch.ones_like(phi), phi)
