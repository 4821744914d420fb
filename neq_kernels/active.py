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
        count: how many there are; in a captured graph, how many there may be.
        captured: whether a graph is being captured, which reads the set anew with every replay.
    """

    padded: Tensor
    count: int
    captured: bool = False
    _regrouped: dict[int, Regrouped] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.padded.numel()

    @property
    def is_full(self) -> bool:
        """Whether no channel is frozen, nor will be when a graph is replayed."""
        return self.count == self.size and not self.captured

    @cached_property
    def index(self) -> Tensor:
        """int32 ``[count]``, the active channels; in a captured graph -1 beyond them."""
        return self.padded[: self.count]

    @cached_property
    def inverse(self) -> Tensor:
        """int32 ``[size]``, each channel's place in ``index``; ``count`` for a frozen one."""
        place = torch.arange(self.count, dtype=torch.int32, device=self.padded.device)
        if not self.captured:
            frozen = torch.full_like(self.padded, self.count)
            return frozen.index_copy_(0, self.index.long(), place)
        # One more place, for what pads the index.
        frozen = self.padded.new_full((self.size + 1,), self.count)
        target = torch.where(self.index < 0, self.size, self.index).long()
        return frozen.index_copy_(0, target, place)[: self.size]

    @cached_property
    def frozen(self) -> Tensor:
        """int64 ``[size - count]``, the channels that are not active; their number must not change,
        as it may in a captured graph."""
        assert not self.captured
        last = (self.inverse == self.count).long().argsort(descending=True, stable=True)
        return last[: self.size - self.count]

    def zero_frozen_(self, grad: Tensor, dim: int) -> Tensor:
        """Set the frozen channels along ``dim`` of ``grad`` to zero, in place; returns it."""
        if not self.captured:
            return grad.index_fill_(dim, self.frozen, 0)
        shape = [1] * grad.dim()
        shape[dim] = -1
        return grad.masked_fill_((self.inverse == self.count).view(shape), 0)

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
_bounds: WeakIdKeyDictionary = WeakIdKeyDictionary()


def lists(index: Tensor, count: Tensor) -> Lists:
    """Derive :class:`Lists` from ``index`` (int32 ``[size]``, -1 beyond) and ``count`` (0-d, CPU).

    Remembered per index tensor and its version on the CPU, where the derivation would cost as much
    as a small layer's gradient. On a device it is derived anew, without a host sync, so that a
    captured graph follows the set: it then holds for all sets of as many channels as the bucket.
    """
    if capturing(index):
        width = min(bucket(int(count)), index.numel())
        bound(index, 0, width)
        return Lists(index, width, captured=True)
    if index.device.type != "cpu":
        return Lists(index, int(count))
    known: tuple[int, Lists] | None = _cache.get(index)
    if known is not None and known[0] == index._version:
        return known[1]
    # A copy: what is derived later must still be of this version.
    derived = Lists(index.clone(), int(count))
    _cache[index] = (index._version, derived)
    return derived


def check_unchanged(index: Tensor, version: int) -> None:
    """Refuse a backward whose forward saw ``index`` at another version.

    Raises:
        RuntimeError: the set was changed in between.
    """
    if index._version != version:
        raise RuntimeError(
            "backward: expected the active set that the forward saw, but it was changed in between "
            "by set_active or tracker.update(); change sets between optimizer steps, or run the "
            "forward again"
        )


def capturing(tensor: Tensor) -> bool:
    """Whether what is done with ``tensor`` now goes into a CUDA graph, to be replayed later."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def bound(index: Tensor, least: int, most: int) -> None:
    """Note that a captured graph reads ``index``, and is right for so many channels only."""
    before = _bounds.get(index, (0, index.numel()))
    _bounds[index] = (max(before[0], least), min(before[1], most))


def check_bound(index: Tensor, count: int) -> None:
    """Refuse a set that a graph captured with ``index`` would get wrong.

    Raises:
        RuntimeError: it has too many active channels, or too few.
    """
    least, most = _bounds.get(index, (0, index.numel()))
    if least <= count <= most:
        return
    served = f"at most {most}" if not least else f"all {least}"
    raise RuntimeError(
        f"active: expected {served} active neurons, for which a CUDA graph was captured, got "
        f"{count}; choose such a set, or call layer.forget_graphs() and capture graphs anew"
    )


def forget_bound(index: Tensor) -> None:
    """No captured graph is going to be replayed that reads ``index``."""
    _bounds.pop(index, None)
