"""What a backward takes with some neurons frozen, from what `neq.profile` has measured."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Protocol


class LayerTime(Protocol):
    """A row of `neq_kernels.profile`'s result: one layer at one share of active neurons."""

    name: str
    count: int
    size: int
    dense_ms: float
    dgrad_ms: float
    ours_ms: float


class LayerCost:
    """One layer's backward by the number of its active neurons: measured counts, straight lines
    between them, never slower than with more neurons.

    Attributes:
        ms: of all counts, 0 to C; without active neurons the input's gradient alone.
        dgrad_ms: of the input's gradient.
    """

    def __init__(self, rows: list[LayerTime]) -> None:
        first = rows[0]
        self.size, self.dgrad_ms = first.size, min(first.dgrad_ms, first.dense_ms)
        # Each share was measured against a dense run of its own.
        points = {row.count: first.dense_ms * row.ours_ms / row.dense_ms for row in rows}
        points |= {0: self.dgrad_ms, self.size: first.dense_ms}
        counts = sorted(points)
        for below, count in zip(reversed(counts[:-1]), reversed(counts[1:]), strict=True):
            points[below] = max(self.dgrad_ms, min(points[below], points[count]))
        self.ms = [_between(points, counts, count) for count in range(self.size + 1)]

    @classmethod
    def of(cls, ms: list[float], dgrad_ms: float) -> LayerCost:
        """From its own attributes."""
        made = cls.__new__(cls)
        made.ms, made.dgrad_ms, made.size = list(ms), dgrad_ms, len(ms) - 1
        return made

    @property
    def dense_ms(self) -> float:
        """With all neurons active."""
        return self.ms[-1]

    @property
    def per_neuron(self) -> float:
        """Milliseconds of the weight gradient that one neuron stands for."""
        return (self.dense_ms - self.dgrad_ms) / self.size

    def free(self, count: int) -> int:
        """The most active neurons that take no longer than `count`; none stay none."""
        return max(c for c in range(count, self.size + 1) if self.ms[c] <= self.ms[count])


def _between(points: Mapping[int, float], counts: list[int], count: int) -> float:
    if count in points:
        return points[count]
    above = next(place for place, known in enumerate(counts) if known > count)
    low, high = counts[above - 1], counts[above]
    share = (count - low) / (high - low)
    return (1 - share) * points[low] + share * points[high]


class BackwardCost:
    """The whole backward's time, from a `neq_kernels.profile` result."""

    def __init__(self, profile: Any) -> None:
        rows: dict[str, list[LayerTime]] = {}
        for row in profile.layers:
            rows.setdefault(row.name, []).append(row)
        self.layers = {name: LayerCost(found) for name, found in rows.items()}
        self.cuts = profile.cuts
        self.dense_ms = float(profile.backward_ms)
        measured = sum(layer.dense_ms for layer in self.layers.values())
        # Layers timed one by one, on cold inputs, may take longer than all of them together.
        self._scale = min(1.0, self.dense_ms / measured) if measured else 1.0
        self._others_ms = self.dense_ms - self._scale * measured

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        layers = {n: {"ms": list(c.ms), "dgrad_ms": c.dgrad_ms} for n, c in self.layers.items()}
        cuts = [[list(cut.frozen), list(cut.silent), cut.below_ms] for cut in self.cuts]
        totals = [self.dense_ms, self._scale, self._others_ms]
        return {"layers": layers, "cuts": cuts, "totals": totals}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the times of `state`."""
        self.layers = {n: LayerCost.of(c["ms"], c["dgrad_ms"]) for n, c in state["layers"].items()}
        self.cuts = tuple(
            SimpleNamespace(frozen=tuple(frozen), silent=tuple(silent), below_ms=below)
            for frozen, silent, below in state["cuts"]
        )
        self.dense_ms, self._scale, self._others_ms = state["totals"]

    def ms(self, counts: Mapping[str, int], cut: Any) -> float:
        """Predicted milliseconds with so many active neurons per layer, and `cut`'s prefix frozen
        whole."""
        silent = set(cut.silent) & set(self.layers)
        kept = 0.0
        for name, layer in self.layers.items():
            # Where nothing beneath trains in the dense network either, dgrad_ms is 0.
            quiet = layer.dgrad_ms if name in silent else 0.0
            kept += layer.ms[counts.get(name, layer.size)] - quiet
        return self._scale * kept + self._others(cut)

    def _others(self, cut: Any) -> float:
        """What is no measured layer's: activations, norms, additions; less what is below `cut`."""
        beneath = [self.layers[name].dense_ms for name in cut.silent if name in self.layers]
        below = cut.below_ms - self._scale * sum(beneath) if cut.below_ms else 0.0
        return self._others_ms - min(max(below, 0.0), self._others_ms)
