"""Which neurons of a layer are active: the value users pass around, and the lists kernels read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


class ActiveSet:
    """The active channels of one layer, as an immutable value on the CPU.

    Build one with :meth:`from_mask`, :meth:`from_index`, :meth:`full` or :meth:`empty`.

    Attributes:
        index: the active channels in rising order, int32, shape ``[count]``. Do not write to it.
        count: how many channels are active.
        size: how many channels there are.
        is_full, is_empty: whether all, or none, are active.
    """

    def __init__(self, index: Tensor, size: int) -> None:
        self.index = index
        self.size = size
        self.count = index.numel()
        self.is_full = self.count == size
        self.is_empty = self.count == 0

    @classmethod
    def from_mask(cls, mask: Tensor | Sequence[bool]) -> ActiveSet:
        """The set of the channels where ``mask`` (bool, shape ``[size]``) is true.

        Raises:
            TypeError: ``mask`` is not boolean.
            ValueError: ``mask`` is not one-dimensional.
        """
        mask = mask if isinstance(mask, Tensor) else torch.tensor(mask, device="cpu")
        if mask.dtype != torch.bool:
            raise TypeError(
                f"mask: expected a bool tensor, got {mask.dtype}; "
                "compare it first (mask != 0), or pass channel numbers to from_index"
            )
        if mask.dim() != 1:
            raise ValueError(f"mask: expected one dimension, [size], got shape {tuple(mask.shape)}")
        mask = mask.detach().cpu()
        return cls(mask.nonzero().flatten().to(torch.int32), mask.numel())

    @classmethod
    def from_index(cls, index: Tensor | Sequence[int], size: int) -> ActiveSet:
        """The set of the channels numbered in ``index`` (integers, any order) out of ``size``.

        Raises:
            TypeError: ``index`` does not hold integers.
            ValueError: ``index`` is not one-dimensional, or repeats a channel.
            IndexError: a channel is negative or not below ``size``.
        """
        if not isinstance(index, Tensor):
            dtype = None if len(index) else torch.int64
            index = torch.tensor(index, dtype=dtype, device="cpu")
        if index.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8):
            raise TypeError(
                f"index: expected integers, got {index.dtype}; "
                "use from_mask for a mask, or index.long() for whole numbers held as floats"
            )
        if index.dim() != 1:
            raise ValueError(
                f"index: expected one dimension, [count], got shape {tuple(index.shape)}"
            )
        index = index.detach().cpu().long().sort().values
        if index.numel() and (index[0] < 0 or index[-1] >= size):
            wrong = int(index[0]) if index[0] < 0 else int(index[-1])
            raise IndexError(f"index: expected channels in [0, {size}), got {wrong}")
        repeated = index[1:][index[1:] == index[:-1]]
        if repeated.numel():
            raise ValueError(
                f"index: expected each channel once, got channel {int(repeated[0])} repeatedly; "
                "pass index.unique()"
            )
        return cls(index.to(torch.int32), size)

    @classmethod
    def full(cls, size: int) -> ActiveSet:
        """All ``size`` channels active."""
        return cls(torch.arange(size, dtype=torch.int32, device="cpu"), size)

    @classmethod
    def empty(cls, size: int) -> ActiveSet:
        """None of ``size`` channels active."""
        return cls(torch.empty(0, dtype=torch.int32, device="cpu"), size)

    def mask(self) -> Tensor:
        """A fresh bool tensor of shape ``[size]``, true where the channel is active."""
        mask = torch.zeros(self.size, dtype=torch.bool, device="cpu")
        mask[self.index.long()] = True
        return mask

    @cached_property
    def frozen(self) -> Tensor:
        """The channels that are not active, in rising order, int64, ``[size - count]``."""
        return (~self.mask()).nonzero().flatten()

    def __and__(self, other: ActiveSet) -> ActiveSet:
        """The channels active in both sets.

        Raises:
            ValueError: the sizes differ.
        """
        if self.size != other.size:
            raise ValueError(f"other: expected a set of {self.size} channels, got {other!r}")
        return ActiveSet.from_mask(self.mask() & other.mask())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ActiveSet):
            return NotImplemented
        return self.size == other.size and torch.equal(self.index, other.index)

    def __hash__(self) -> int:
        return hash((self.size, tuple(self.index.tolist())))

    def __repr__(self) -> str:
        return f"ActiveSet({self.count} of {self.size} active)"


def bucket(count: int) -> int:
    """Padded length of a list of ``count`` channels: 8, 16, ... 64, then four steps per octave.

    Kernels see few distinct lengths, so a change of the set seldom means a new configuration.
    """
    if count <= 64:
        return -(-count // 8) * 8
    step = 1 << ((count - 1).bit_length() - 3)
    return -(-count // step) * step


@dataclass(frozen=True, eq=False)
class Lists:
    """What the operators derive from a layer's padded ``index`` and its ``count``, each when it is
    first asked for: some kernels need no more than the index.

    Attributes:
        padded: int32 ``[size]``, the active channels, -1 beyond.
        count: how many there are.
    """

    padded: Tensor
    count: int
    _regrouped: dict[int, Regrouped] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.padded.numel()

    @property
    def index(self) -> Tensor:
        """int32 ``[count]``, the active channels."""
        return self.padded[: self.count]

    @cached_property
    def inverse(self) -> Tensor:
        """int32 ``[size]``, each channel's place in ``index``; ``count`` for a frozen one."""
        place = torch.arange(self.count, dtype=torch.int32, device=self.padded.device)
        frozen = torch.full_like(self.padded, self.count)
        return frozen.index_copy_(0, self.index.long(), place)

    @cached_property
    def frozen(self) -> Tensor:
        """int64 ``[size - count]``, the channels that are not active."""
        last = (self.inverse == self.count).long().argsort(descending=True, stable=True)
        return last[: self.size - self.count]

    def regrouped(self, groups: int) -> Regrouped:
        """The same channels laid out for a grouped convolution; reads ``index`` on the host."""
        if groups not in self._regrouped:
            self._regrouped[groups] = _regroup(self.index.long(), self.size, groups)
        return self._regrouped[groups]


@dataclass(frozen=True, eq=False)
class Regrouped:
    """Active channels of a grouped convolution, as a smaller grouped convolution.

    Only groups that hold an active channel stay, each with as many places as the fullest one.

    Attributes:
        groups: int64 ``[kept]``, the groups that stay.
        index: int32 ``[kept * width]``, the channel at each place, -1 for padding.
        inverse: int32 ``[size]``, each channel's place; ``kept * width`` for a frozen one.
    """

    groups: Tensor
    index: Tensor
    inverse: Tensor

    @property
    def count(self) -> int:
        return self.index.numel()


def _regroup(channels: Tensor, size: int, groups: int) -> Regrouped:
    owner = channels // (size // groups)
    kept, position, filled = owner.unique_consecutive(return_inverse=True, return_counts=True)
    width = int(filled.max()) if filled.numel() else 0
    first = filled.cumsum(0) - filled
    rank = torch.arange(channels.numel(), device=channels.device) - first[position]
    place = position * width + rank
    index = channels.new_full((kept.numel() * width,), -1).index_copy_(0, place, channels)
    inverse = channels.new_full((size,), kept.numel() * width).index_copy_(0, channels, place)
    return Regrouped(kept, index.to(torch.int32), inverse.to(torch.int32))


_cache: WeakIdKeyDictionary = WeakIdKeyDictionary()


def lists(index: Tensor, count: Tensor) -> Lists:
    """Derive :class:`Lists` from ``index`` (int32 ``[size]``, -1 beyond) and ``count`` (0-d, CPU).

    Remembered per index tensor and its version on the CPU, where the derivation would cost as much
    as a small layer's gradient. On a device it is derived anew, without a host sync, so that a
    captured graph follows the set.
    """
    if index.device.type != "cpu":
        return Lists(index, int(count))
    known: tuple[int, Lists] | None = _cache.get(index)
    if known is not None and known[0] == index._version:
        return known[1]
    # A copy: what is derived later must still be of this version.
    derived = Lists(index.clone(), int(count))
    _cache[index] = (index._version, derived)
    return derived
