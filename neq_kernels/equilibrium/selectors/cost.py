"""What a backward takes with some neurons frozen, from what `neq.profile` has measured."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Protocol

# Of the dense time: savings below say nothing about the gain.
LEAST_SAVING = 0.05
MOST_GAIN = 2.0


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
    """The whole backward's time, from a `neq_kernels.profile` result, and from what training has
    shown since.

    A profile times layers one by one. That leaves out what a step adds: autograd's own work, norms
    with a frozen part, memory that is cold or warm. So the dense time is replaced by that of a
    dense epoch, and what the layers promise to save is multiplied by the share of it that an epoch
    with frozen neurons did save.

    Attributes:
        dense_ms: with all neurons active.
        gain: saved milliseconds per predicted one.
        measured: whether training has shown anything yet.
    """

    def __init__(self, profile: Any) -> None:
        rows: dict[str, list[LayerTime]] = {}
        for row in profile.layers:
            rows.setdefault(row.name, []).append(row)
        self.layers = {name: LayerCost(found) for name, found in rows.items()}
        self.cuts = profile.cuts
        self.gain, self.measured, self._gained = 1.0, False, False
        self._profiled_ms = float(profile.backward_ms)
        self._set_dense(self._profiled_ms)

    def _set_dense(self, ms: float) -> None:
        self.dense_ms = ms
        measured = sum(layer.dense_ms for layer in self.layers.values())
        # Layers timed one by one, on cold inputs, may take longer than all of them together.
        self._scale = min(1.0, ms / measured) if measured else 1.0
        self._others_ms = ms - self._scale * measured

    def saw_dense(self, ms: float) -> None:
        """An epoch with all neurons active took `ms` per backward."""
        self._set_dense(ms)
        self.measured = True

    def saw(self, predicted_ms: float, ms: float) -> None:
        """An epoch for which `ms()` was `predicted_ms` took `ms` per backward."""
        promised = (self.dense_ms - predicted_ms) / self.gain
        if promised < LEAST_SAVING * self.dense_ms:
            return  # noise would decide
        found = min(max((self.dense_ms - ms) / promised, 1 / MOST_GAIN), MOST_GAIN)
        # Sets differ from epoch to epoch, and their gains too: it follows half the way.
        self.gain = (self.gain + found) / 2 if self._gained else found
        self.measured = self._gained = True

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        layers = {n: {"ms": list(c.ms), "dgrad_ms": c.dgrad_ms} for n, c in self.layers.items()}
        cuts = [[list(cut.frozen), list(cut.silent), cut.below_ms] for cut in self.cuts]
        totals = [self._profiled_ms, self.dense_ms, self.gain, self.measured, self._gained]
        return {"layers": layers, "cuts": cuts, "totals": totals}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the times of `state`."""
        self.layers = {n: LayerCost.of(c["ms"], c["dgrad_ms"]) for n, c in state["layers"].items()}
        self.cuts = tuple(
            SimpleNamespace(frozen=tuple(frozen), silent=tuple(silent), below_ms=below)
            for frozen, silent, below in state["cuts"]
        )
        self._profiled_ms, dense_ms, self.gain, self.measured, self._gained = state["totals"]
        self._set_dense(dense_ms)

    def ms(self, counts: Mapping[str, int], cut: Any) -> float:
        """Predicted milliseconds with so many active neurons per layer, and `cut`'s prefix frozen
        whole."""
        silent = set(cut.silent) & set(self.layers)
        kept = 0.0
        for name, layer in self.layers.items():
            # Where nothing beneath trains in the dense network either, dgrad_ms is 0.
            quiet = layer.dgrad_ms if name in silent else 0.0
            kept += layer.ms[counts.get(name, layer.size)] - quiet
        saved = self.dense_ms - self._scale * kept - self._others(cut)
        return self.dense_ms - self.gain * saved

    def _others(self, cut: Any) -> float:
        """What is no measured layer's: activations, norms, additions; less what is below `cut`."""
        beneath = [self.layers[name].dense_ms for name in cut.silent if name in self.layers]
        below = cut.below_ms * self.dense_ms / self._profiled_ms if cut.below_ms else 0.0
        below -= self._scale * sum(beneath) if cut.below_ms else 0.0
        return self._others_ms - min(max(below, 0.0), self._others_ms)
