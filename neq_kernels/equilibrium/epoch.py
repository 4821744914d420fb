"""One update of a tracker, as its history keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from neq_kernels.active import ActiveSet

from .report import LayerRow

# |v| by powers of ten, five bins each; what is below the first edge or above the last is in the
# bins at the ends.
EDGES = torch.logspace(-8, 1, 46, dtype=torch.float64)


@dataclass
class Epoch:
    """One update.

    Attributes:
        epoch: t; 0 for the pass before training.
        layers: a row per measured layer.
        active: who trains from now on, bool, all layers of `layers` one after the other.
        velocities: neurons by |v|, int64 `[47]`: below the first of `EDGES`, between each two, from
            the last on.
        epsilon: the selector's, if it has one.
        seconds, share: time the update took, and its share of the epoch.
        values: what the user noted of the epoch, by name.
    """

    epoch: int
    layers: tuple[LayerRow, ...]
    active: Tensor
    velocities: Tensor
    epsilon: float | None
    seconds: float
    share: float | None
    values: dict[str, float] = field(default_factory=dict)

    @property
    def frozen_share(self) -> float:
        """Frozen neurons as a share of the measured ones."""
        neurons = sum(row.neurons for row in self.layers)
        return sum(row.frozen for row in self.layers) / neurons if neurons else 0.0

    def sets(self) -> dict[str, ActiveSet]:
        """Who trains from now on, by layer."""
        masks = self.active.split([row.neurons for row in self.layers])
        return {r.name: ActiveSet.from_mask(m) for r, m in zip(self.layers, masks, strict=True)}
