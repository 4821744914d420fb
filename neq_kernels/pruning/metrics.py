"""How much of a model is pruned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import by_neuron, connects, parameters, prunable


@torch.no_grad()
def share_zeroed(model: nn.Module) -> float:
    """Share of zeros, 0 to 1, among the parameters of the Linear, convolution, transposed
    convolution and batch-norm layers (LOBSTER, arXiv 2011.09905)."""
    found = [p for module in prunable(model).values() for p in parameters(module).values()]
    zeros = _total([(p == 0).sum() for p in found])
    return zeros / sum(p.numel() for p in found)


@torch.no_grad()
def share_removed(model: nn.Module) -> float:
    """Share of neurons, 0 to 1, all of whose incoming weights are zero; biases do not count
    (SeReNe, arXiv 2102.03773). Neurons are those of Linear and convolution layers."""
    rows = [by_neuron(m, parameters(m)["weight"]) for m in prunable(model).values() if connects(m)]
    removed = _total([(row == 0).all(1).sum() for row in rows])
    return removed / max(1, sum(len(row) for row in rows))


def _total(counts: list[Tensor]) -> int:
    """The sum, with one copy to the host if all are on one device."""
    if not counts:
        return 0
    if len({count.device for count in counts}) == 1:
        return int(torch.stack(counts).sum())
    return sum(int(count) for count in counts)
