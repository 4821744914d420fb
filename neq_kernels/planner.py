"""Dense or packed: which way a layer's weight gradient is computed.

"packed" gathers the active channels of dY and multiplies only those. "dense" computes every row
and zeroes the frozen ones: right where gathering costs more than the rows it saves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Geometry:
    """What decides the cost of one layer's weight gradient.

    Attributes:
        kind: "linear" or "conv".
        device: kind of device, such as "cpu".
        dtype: of the output's gradient.
        positions: terms of each weight's sum: tokens, or N*H*W of the output.
        fan_in: weights per neuron.
        size, count: all neurons, active neurons.
        groups: of a convolution.
        channels_last: whether channels are contiguous in the output's gradient.
    """

    kind: str
    device: str
    dtype: torch.dtype
    positions: int
    fan_in: int
    size: int
    count: int
    groups: int = 1
    channels_last: bool = False


def choose(geometry: Geometry) -> str:
    """``"packed"`` or ``"dense"`` for this geometry."""
    return "packed"
