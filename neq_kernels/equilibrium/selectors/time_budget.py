"""The selector that is told how much faster the backward shall be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .base import Scores
from .cost import BackwardCost


@dataclass(frozen=True)
class Prediction:
    """What a `TimeBudget` has chosen, and what that should take.

    Attributes:
        dense_ms, ms: the backward with all neurons active, and with those chosen.
        prefix: how many layers, norms included, are frozen whole from the input up.
        active, neurons: of the layers that were to choose from.
    """

    dense_ms: float
    ms: float
    prefix: int
    active: int
    neurons: int

    @property
    def speedup(self) -> float:
        return self.dense_ms / max(self.ms, 1e-9)

    def __str__(self) -> str:
        return (
            f"backward predicted {self.ms:.3g} ms of {self.dense_ms:.3g} ({self.speedup:.2f}x), "
            f"{self.active} of {self.neurons} neurons active, first {self.prefix} layers frozen"
        )

    def against(self, measured_ms: float) -> str:
        """One line, what was measured beside what was predicted, milliseconds."""
        return (
            f"backward of the last epoch: predicted {self.ms:.3g} ms of {self.dense_ms:.3g} "
            f"({self.speedup:.2f}x), measured {measured_ms:.3g} ms "
            f"({self.dense_ms / measured_ms:.2f}x)"
        )


class TimeBudget:
    """Trains the neurons that move most per millisecond, so many that the backward is `speedup`
    times faster than with all.

    Only a prefix of the network that is frozen whole spares the gradients of inputs, so every
    length of it is tried. Above it neurons are taken in falling order of |v_t| / ms, the share of
    their layer's weight gradient that one of them stands for, as many as the time allows; then
    those that cost nothing, as where a layer computes all its rows anyway. Of all lengths the one
    whose active neurons move most, the sum of |v_t|, is kept. Neurons of norms have no price: they
    freeze with the prefix only.

    An `Equilibrium` times the backward of training, and tells: an epoch with all neurons active
    says what dense really takes, an epoch with frozen ones how much of what was promised was saved.
    What cannot be reached by what was measured so far is come as near to as can be.

    Args:
        speedup: of the backward, at least 1.
        profile: what `neq.profile(model, example_input)` has measured on this machine, with the
            batch size of training; more shares, such as ``active=(1, .75, .5, .25, .1)``, make
            better predictions. Of the model in train mode.
        calibrate: whether to learn from what is measured in training. Without, the choice depends
            on velocities and `profile` alone, and a run that is killed and resumed chooses as if it
            had not been.

    Attributes:
        prediction: of the last choice; None before it.

    Raises:
        ValueError: a speed-up below 1, or one that would not be reached with everything frozen.
        TypeError: not a profile.
    """

    needs = "velocity"

    def __init__(self, speedup: float, profile: Any, *, calibrate: bool = True) -> None:
        if not 1 <= speedup < float("inf"):
            raise ValueError(f"speedup: expected a number >= 1, got {speedup!r}")
        if not getattr(profile, "cuts", None):
            raise TypeError(
                "profile: expected what neq.profile(model, example_input) returned, got "
                f"{type(profile).__name__}"
            )
        self.speedup, self.calibrate = float(speedup), bool(calibrate)
        self._cost = BackwardCost(profile)
        self.prediction: Prediction | None = None
        self._check(min(self._least(cut, set(self._cost.layers)) for cut in self._cost.cuts))

    def measured(self, ms: float) -> None:
        """The backward has taken `ms` per step since the last choice."""
        if not self.calibrate:
            return
        if self.prediction is None:
            self._cost.saw_dense(ms)
        else:
            self._cost.saw(self.prediction.ms, ms)

    def __call__(self, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        cuts = [cut for cut in self._cost.cuts if set(cut.frozen) <= set(scores)]
        least = min(self._least(cut, set(scores)) for cut in cuts)
        if not self._cost.measured:
            self._check(least)
        # A little more than wanted, for rounding.
        limit = max(self._cost.dense_ms / self.speedup, least) * (1 + 1e-9)
        # Of what is not known, NaN, nothing is frozen unless with a prefix: it comes first.
        worth = {n: s.velocity.abs().nan_to_num(nan=torch.inf) for n, s in scores.items()}
        fillings = [found for cut in cuts if (found := self._fill(cut, worth, limit)) is not None]
        masks, cut, ms = max(fillings, key=lambda found: (_moving(worth, found[0]), -found[2]))
        self.prediction = Prediction(
            self._cost.dense_ms,
            ms,
            len(cut.frozen),
            sum(int(mask.sum()) for mask in masks.values()),
            sum(mask.numel() for mask in masks.values()),
        )
        return masks

    def _fill(
        self, cut: Any, worth: Mapping[str, Tensor], limit: float
    ) -> tuple[dict[str, Tensor], Any, float] | None:
        """The best masks with the prefix of `cut` frozen, the cut, and their time; None if even
        with all the rest frozen it takes more than `limit` milliseconds."""
        priced = [n for n in worth if n in self._cost.layers and n not in cut.frozen]
        order, owners = self._order(priced, worth)

        def masks(taken: int) -> dict[str, Tensor]:
            chosen = torch.zeros(len(order), dtype=torch.bool)
            chosen[order[:taken]] = True
            return dict(zip(priced, chosen.split(owners), strict=True)) if priced else {}

        def time(found: Mapping[str, Tensor]) -> float:
            counts = dict.fromkeys(cut.frozen, 0)
            counts |= {name: int(mask.sum()) for name, mask in found.items()}
            return self._cost.ms(counts, cut)

        if time(masks(0)) > limit:
            return None
        low, high = 0, len(order)  # time(masks(low)) fits
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if time(masks(middle)) <= limit else (low, middle - 1)
        chosen = {name: self._with_free(name, mask, worth) for name, mask in masks(low).items()}
        whole = {
            name: torch.full((w.numel(),), name not in cut.frozen, dtype=torch.bool)
            for name, w in worth.items()
        }
        return {**whole, **chosen}, cut, time(chosen)

    def _order(self, names: list[str], worth: Mapping[str, Tensor]) -> tuple[Tensor, list[int]]:
        """Neurons of `names`, one layer after the other, by falling |v| per millisecond."""
        parts = [worth[n] / max(self._cost.layers[n].per_neuron, 1e-12) for n in names]
        together = torch.cat([torch.empty(0, dtype=torch.float64), *parts])
        return together.argsort(descending=True, stable=True), [part.numel() for part in parts]

    def _with_free(self, name: str, mask: Tensor, worth: Mapping[str, Tensor]) -> Tensor:
        count = int(mask.sum())
        more = self._cost.layers[name].free(count) - count
        order = worth[name].masked_fill(mask, -1).argsort(descending=True, stable=True)
        return mask.index_fill(0, order[:more], True)

    def _least(self, cut: Any, names: set[str]) -> float:
        return self._cost.ms(dict.fromkeys(names & set(self._cost.layers), 0), cut)

    def _check(self, least: float) -> None:
        reached = self._cost.dense_ms / max(least, 1e-9)
        if reached < self.speedup:
            raise ValueError(
                f"speedup: expected at most {reached:.2f}, what freezing every measured neuron "
                f"would give, got {self.speedup:g}; see print(neq.profile(...))"
            )

    def settings(self) -> dict[str, Any]:
        return {"speedup": self.speedup, "calibrate": self.calibrate}

    def state_dict(self) -> dict[str, Any]:
        prediction = None if self.prediction is None else asdict(self.prediction)
        return {
            "speedup": self.speedup,
            "calibrate": self.calibrate,
            "cost": self._cost.state_dict(),
            "prediction": prediction,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        prediction = state["prediction"]
        self.speedup, self.calibrate = float(state["speedup"]), state["calibrate"]
        self._cost.load_state_dict(state["cost"])
        self.prediction = None if prediction is None else Prediction(**prediction)

    def __repr__(self) -> str:
        return f"TimeBudget(speedup={self.speedup:g})"


def _moving(worth: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> float:
    """The sum of |v| over the active neurons; one that is not known counts as the most."""
    known = max((float(w[w.isfinite()].max()) for w in worth.values() if w.isfinite().any()),
                default=1.0)  # fmt: skip
    return sum(float(w.clamp(max=known)[masks[name]].sum()) for name, w in worth.items())
