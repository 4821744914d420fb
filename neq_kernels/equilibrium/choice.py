"""From what a pass has found to the active sets until the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neq_kernels.active import ActiveSet
from neq_kernels.layer import NEqLayer
from neq_kernels.sets import sets_of

from .measure import Finding, kind_of
from .selectors import Scores, Selector, select
from .velocity import Track


@dataclass(frozen=True)
class Choice:
    """One update's.

    Attributes:
        passes: how many there were before this one.
        warmup: epochs that train every neuron.
        inclusive: whether |v| = epsilon is equilibrium.
    """

    layers: Mapping[str, NEqLayer]
    passes: int
    warmup: int
    inclusive: bool

    def sets(self, selector: Selector, findings: Mapping[str, Finding]) -> dict[str, ActiveSet]:
        """The sets until the next update: full in the warm-up and where nothing was compared."""
        if self.passes == 0:
            return self._first(selector, findings)
        sets = {name: ActiveSet.full(self.layers[name].size) for name in findings}
        if self.passes >= self.warmup:
            tracks = {name: found.track for name, found in findings.items() if found.track}
            masks = select(selector, self._scores(tracks))
            sets.update(zip(masks, sets_of(list(masks.values())), strict=True))
        return sets

    def _first(self, selector: Selector, findings: Mapping[str, Finding]) -> dict[str, ActiveSet]:
        """The sets of the first epoch: as they are, unless without warm-up the selector chooses."""
        first = getattr(selector, "first", None)
        if first is None or self.warmup > 0:
            return {}
        tracks = {name: found.state.track for name, found in findings.items() if found.state}
        chosen = first(scores := self._scores(tracks))
        masks = {} if chosen is None else select(lambda _: chosen, scores)
        return dict(zip(masks, sets_of(list(masks.values())), strict=True))

    def _scores(self, tracks: Mapping[str, Track]) -> dict[str, Scores]:
        return {name: self._of(self.layers[name], track) for name, track in tracks.items()}

    def _of(self, layer: NEqLayer, track: Track) -> Scores:
        return Scores(
            velocity=track["velocity"].clone(),
            similarity=track["similarity"].clone(),
            active=layer.chosen.mask(),
            parameters=sum(p.numel() for _, p, _ in layer.neuron_parameters()) // layer.size,
            kind=kind_of(layer),
            epoch=self.passes,
            inclusive=self.inclusive,
        )


def check_warmup(warmup: int) -> int:
    """`warmup`, if a whole number >= 0, else ValueError."""
    if not isinstance(warmup, int) or isinstance(warmup, bool) or warmup < 0:
        raise ValueError(f"warmup: expected a whole number of epochs >= 0, got {warmup!r}")
    return warmup
