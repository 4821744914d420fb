"""The sensitivity of a network's outputs to its neurons, by way of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

# fp16 loses what is below 6e-8, and a derivative by one position is small.
_SCALE = 1024.0


def lower_bound(
    outputs: Tensor, potentials: Sequence[GradientEdge], half: bool
) -> list[Tensor | None]:
    """``|sum_k dy_k/dp| / C`` of each potential, in its shape; None where the outputs do not depend
    on it. ``outputs``: ``[N, C]``. One backward pass."""
    scale = _SCALE if half else 1.0
    classes = outputs.shape[1]
    gradients = torch.autograd.grad(
        outputs, potentials, torch.full_like(outputs, scale), retain_graph=True, allow_unused=True
    )
    return [None if g is None else g.abs_().mul_(1 / (scale * classes)) for g in gradients]


def full(
    outputs: Tensor, potentials: Sequence[GradientEdge], half: bool, chunk: int
) -> list[Tensor | None]:
    """``sum_k |dy_k/dp| / C`` of each potential, in its shape; None where the outputs do not depend
    on it. ``outputs``: ``[N, C]``. As many backward passes as there are classes, ``chunk`` of them
    at a time in one batched pass."""
    scale = _SCALE if half else 1.0
    classes = outputs.shape[1]
    sums: list[Tensor | None] = [None] * len(potentials)
    for first in range(0, classes, chunk):
        count = min(chunk, classes - first)
        seeds = outputs.new_zeros(count, *outputs.shape)
        for place in range(count):
            seeds[place, :, first + place] = scale
        for place, gradient in enumerate(_gradients(outputs, potentials, seeds)):
            if gradient is not None:
                part = gradient.abs().sum(0).mul_(1 / (scale * classes))
                known = sums[place]
                sums[place] = part if known is None else known.add_(part)
    return sums


def _gradients(
    outputs: Tensor, potentials: Sequence[GradientEdge], seeds: Tensor
) -> list[Tensor | None]:
    """The gradients of each seed, stacked along a first dimension."""
    batched = len(seeds) > 1
    found: Sequence[Tensor | None] = torch.autograd.grad(
        outputs,
        potentials,
        seeds if batched else seeds[0],
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=batched,
    )
    return [g if batched or g is None else g.unsqueeze(0) for g in found]
