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
        writers = {tuple(self._roots[s.inner].tolist()): s for s in spreads}
        self._writes = {
            id(site): writers[key]
            for site in sites
            if site.outputs is not None
            and (key := tuple(self._roots[site.outputs].tolist())) in writers
        }
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
        found = set()
        for site in self._sites:
            spread = self._writes.get(id(site))
            if spread is None or spread.present:
                continue
            outer = self.kept(spread.outer, len(spread.outer))
            fewer = int(outer[spread.places].sum() - self.kept(spread.inner, len(outer)).sum())
            inputs = int(self.kept(site.inputs, len(site.mask)).sum()) // site.groups
            saved = fewer * inputs * site.weight.tensor[0, 0].numel()
            device = site.weight.tensor.device.type
            if fewer and saved < PAYS.get(device, PAYS_ELSEWHERE) * int(outer.sum()):
                found.add(spread.name)
        return found

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
        """Round numbers of neurons up, by keeping some that would go; zero ones first."""
        changed = False
        for site in self._sites if multiple > 1 else []:
            if site.outputs is None:
                continue
            size = len(site.outputs)
            kept = self.kept(site.outputs, size)
            missing = min(size, -(-int(kept.sum()) // multiple) * multiple) - int(kept.sum())
            if missing:
                cost = (~site.zero_rows).int()
                if spread := self._writes.get(id(site)):
                    cost += ~self.kept(spread.outer, len(spread.outer))[spread.places] * 2
                spare = torch.where(kept, 4, cost).argsort(stable=True)
                changed |= self._keep(site.outputs, spare[:missing], ROUND.format(multiple))
        return changed
