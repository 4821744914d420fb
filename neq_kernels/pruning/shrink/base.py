"""What can be known of a tensor before any input comes: which channels are constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from neq_kernels.pruning.shrink.trace import Value


@dataclass(frozen=True)
class Known:
    """``value`` (float64, or as it is where not floating) holds where ``mask`` does. Both have as
    many dimensions as the tensor, each of its size or 1.

    Where ``framed`` does, ``value`` holds but for a border of zeros, the same in all channels.
    ``sums_to_one``: along the last dimension, as after a softmax.
    """

    mask: Tensor
    value: Tensor
    framed: Tensor | None = None
    sums_to_one: bool = False

    def along(self, dim: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """(mask, framed, value), each ``[size]``: channels of ``dim`` known to be the same
        everywhere."""
        dim %= self.mask.dim()
        others = [d for d in range(self.mask.dim()) if d != dim and self.mask.shape[d] > 1]
        mask, value = self.mask, self.value
        if others:
            mask = mask.all(others, keepdim=True)
            first = value
            for d in others:
                first = first.narrow(d, 0, 1)
            mask = mask & (value == first).all(others, keepdim=True)
            value = first
        framed = self.framed if self.framed is not None and not others else torch.zeros_like(mask)
        return tuple(t.flatten().expand(size) for t in (mask, framed, value))  # type: ignore[return-value]


def unknown(shape: tuple[int, ...]) -> Known:
    """Nothing, of a tensor of that shape."""
    small = [1] * len(shape)
    return Known(torch.zeros(small, dtype=torch.bool), torch.zeros(small, dtype=torch.float64))


def fixed(tensor: Tensor) -> Known:
    """All of ``tensor`` known; on the CPU, in float64 if floating."""
    value = tensor.detach().to("cpu", torch.float64 if tensor.is_floating_point() else None)
    return Known(torch.ones(value.shape, dtype=torch.bool), value)


#: What is known of a value of the graph.
Of = Callable[[Value], Known]
