"""Which channels stay: the smallest set that computes the same.

Every class of joined channels starts out removed. Whatever the network cannot do without is then
kept, until nothing more is missing: what is pinned; of each weight, the inputs that a kept neuron
reads with a weight other than zero, unless they are constants that can be folded; one channel to
carry the constants that cannot; equally many channels in all groups of a convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neq_kernels.pruning.shrink.axes import Axes, Axis
from neq_kernels.pruning.shrink.sites import Site
from neq_kernels.pruning.shrink.spreads import Spread
from neq_kernels.pruning.shrink.trace import Value

CARRIER = "stands for all constants that meet the padding of {}"
READS = "{} reads it"
ONE = "a layer keeps one neuron at least"
GROUPS = "the groups of {} stay equal"
ADDS = "{} adds it to a sum"
ROUND = "kept for a multiple of {}"
CARRIES = 0.01
# Multiply-adds that writing one element of a sum costs: measured on a CPU with AVX-512; elsewhere,
# what GPUs do while their memory takes one number.
PAYS = {"cpu": 32}
PAYS_ELSEWHERE = 256


class Plan:
    """The channels that stay, and why."""

    def __init__(
        self,
        axes: Axes,
        sites: list[Site],
        spreads: list[Spread],
        leaves: list[Value],
        multiple: int,
    ) -> None:
        self._roots = axes.roots()
        self._kept = torch.zeros(len(self._roots), dtype=torch.bool)
        self._reasons: dict[int, str] = {}
        self._sites = sites
        self._spreads = spreads
        written = {self._key(spread.inner): spread for spread in spreads}
        pairs = [(site, written.get(self._key(site.outputs))) for site in sites]
        self._writes = {site: spread for site, spread in pairs if spread is not None}
        self._writers = {spread.name: site for site, spread in self._writes.items()}
        self._rows = [axis for value in leaves for axis in axes[value] if axis is not None]
        for atom, reason in axes.pins:
            self._keep_roots(self._roots[atom : atom + 1], reason)
        while (
            self._needs()
            or self._spread()
            or self._carriers()
            or self._one_each()
            or self._rounded(multiple)
        ):
            pass

    def kept(self, axis: Axis, size: int) -> Tensor:
        """``[size]``, bool: which channels of ``axis`` stay."""
        if axis is None:
            return torch.ones(size, dtype=torch.bool)
        return self._kept[self._roots[axis]]

    def _key(self, axis: Axis) -> tuple[int, ...] | None:
        return None if axis is None else tuple(self._roots[axis].tolist())

    def writer(self, spread: Spread) -> Site | None:
        """The layer whose neurons the inner channels of ``spread`` are."""
        return self._writers.get(spread.name)

    def classes(self, atoms: Tensor) -> Tensor:
        """The class of each of ``atoms``: the atom that stands for it."""
        return self._roots[atoms]

    def reason(self, root: int) -> str:
        """Why a class stays."""
        return self._reasons[root]

    def _keep(self, axis: Axis, wanted: Tensor, reason: str) -> bool:
        return axis is not None and self._keep_roots(self._roots[axis[wanted]], reason)

    def _keep_roots(self, roots: Tensor, reason: str) -> bool:
        new = roots[~self._kept[roots]].unique()
        self._kept[new] = True
        self._reasons.update((root, reason) for root in new.tolist())
        return len(new) > 0

    def _needs(self) -> bool:
        changed = False
        for site in reversed(self._sites):
            needed = self.needed(site) & ~site.free & ~site.carried
            changed |= self._keep(site.inputs, needed, READS.format(site.name))
            if site.groups > 1:
                changed |= self._even_groups(site)
        return changed

    def needed(self, site: Site) -> Tensor:
        """``[channels]``: what kept neurons of ``site`` read with a weight other than zero."""
        groups, outputs, _ = site.nonzero.shape
        rows = self.kept(site.outputs, groups * outputs).reshape(groups, outputs, 1)
        return (site.nonzero & rows).any(1).flatten()

    def _spread(self) -> bool:
        changed = False
        for spread in reversed(self._spreads):
            outer = self.kept(spread.outer, len(spread.outer))
            needed = outer[spread.places] & ~spread.mask
            changed |= self._keep(spread.inner, needed, ADDS.format(spread.name))
            there = torch.zeros_like(outer)
            there[spread.places] = self.kept(spread.inner, len(spread.inner))
            changed |= self._keep(spread.outer, there, ADDS.format(spread.name))
        return changed

    def unprofitable(self) -> set[str]:
        """Names of the layers that had better compute all channels of the sum they write into."""
        return {s.name for s in self._spreads if not s.present and not self._pays(s)}

    def _pays(self, spread: Spread) -> bool:
        outer = self.kept(spread.outer, len(spread.outer))
        fewer = int(outer[spread.places].sum() - self.kept(spread.inner, len(outer)).sum())
        site = self.writer(spread)
        if site is None or not fewer:
            return site is not None
        weight = site.weight.tensor
        inputs = int(self.kept(site.inputs, len(site.mask)).sum()) // site.groups
        saved = fewer * inputs * weight[0, 0].numel()
        return saved >= PAYS.get(weight.device.type, PAYS_ELSEWHERE) * int(outer.sum())

    def _even_groups(self, site: Site) -> bool:
        groups, outputs, inputs = site.nonzero.shape
        changed = False
        sides = [(site.outputs, outputs), (site.inputs, inputs)]
        kept = [self.kept(axis, groups * n).reshape(groups, n) for axis, n in sides]
        alive = kept[0].any(1) | kept[1].any(1)
        for (axis, _), have in zip(sides, kept, strict=True):
            missing = (have[alive].sum(1).max().clamp(min=1) if alive.any() else 0) - have.sum(1)
            spare = (~have).cumsum(1) <= missing.unsqueeze(1)
            wanted = (spare & ~have & alive.unsqueeze(1)).flatten()
            changed |= self._keep(axis, wanted, GROUPS.format(site.name))
        return changed

    def _carriers(self) -> bool:
        changed = False
        for site in reversed(self._sites):
            if site.inputs is None or self.carrier(site) is not None:
                continue
            wanted = site.carried & self.needed(site)
            if wanted.any():
                best = torch.where(wanted, site.value.abs(), -1.0).argmax().unsqueeze(0)
                changed |= self._keep(site.inputs, best, CARRIER.format(site.name))
        return changed

    def carrier(self, site: Site) -> int | None:
        """The kept channel into which the removed ones of ``site.carried`` go."""
        size = torch.where(site.carried, site.value.abs(), 0.0)
        # A much smaller one would need weights as much larger.
        kept = (size >= CARRIES * size.max()) & site.carried & self.kept(site.inputs, len(size))
        return int(torch.where(kept, size, -1.0).argmax()) if kept.any() else None

    def _one_each(self) -> bool:
        empty = [axis for axis in self._rows if not self.kept(axis, len(axis)).any()]
        kept = [self._keep(axis, torch.tensor([0]), ONE) for axis in empty]
        return any(kept)

    def _rounded(self, multiple: int) -> bool:
        """Round numbers of neurons, and of channels of sums, up by keeping some that would go; zero
        ones first, of them those that the sum has anyway."""
        if multiple == 1:
            return False
        for spread in self._spreads:
            if self._round(spread.outer, torch.zeros(len(spread.outer)), multiple):
                return True
        for site in self._sites:
            if site.outputs is None:
                continue
            cost, writes = (~site.zero_rows).int(), self._writes.get(site)
            if writes is not None:
                cost += ~self.kept(writes.outer, len(writes.outer))[writes.places] * 2
            # One at a time: what it entails may be a multiple for the next already.
            if self._round(site.outputs, cost, multiple):
                return True
        return False

    def _round(self, axis: Tensor, cost: Tensor, multiple: int) -> bool:
        size = len(axis)
        kept = self.kept(axis, size)
        missing = min(size, -(-int(kept.sum()) // multiple) * multiple) - int(kept.sum())
        spare = torch.where(kept, 4, cost).argsort(stable=True)
        return missing > 0 and self._keep(axis, spare[:missing], ROUND.format(multiple))
