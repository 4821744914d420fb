"""Selectors around selectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .base import Scores, Selector, settings


class _Wrapper:
    def __init__(self, selector: Selector) -> None:
        if not callable(selector):
            raise TypeError(f"selector: expected a callable, got {type(selector).__name__}")
        self.selector = selector

    def first(self, scores: Mapping[str, Scores]) -> Mapping[str, Tensor] | None:
        """What the inner selector chooses for the first epoch; None, all, if it does not."""
        chosen = getattr(self.selector, "first", None)
        return chosen(scores) if chosen else None

    def settings(self) -> dict[str, Any]:
        return {"selector": settings(self.selector)}

    def state_dict(self) -> dict[str, Any]:
        save = getattr(self.selector, "state_dict", None)
        return {"name": type(self.selector).__name__, "inner": save() if save else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["name"] != type(self.selector).__name__:
            raise ValueError(
                f"state: expected one of {type(self.selector).__name__}, got one of "
                f"{state['name']}; make the selector as it was made for the saved run"
            )
        load = getattr(self.selector, "load_state_dict", None)
        if load and state["inner"] is not None:
            load(state["inner"])


class Pinned(_Wrapper):
    """Who is frozen stays frozen: ``selector`` may freeze more, and thaws nobody."""

    def __call__(self, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        return {name: mask & scores[name].active for name, mask in self.selector(scores).items()}

    def __repr__(self) -> str:
        return f"Pinned({self.selector!r})"


class Warmup(_Wrapper):
    """Trains everything for the first ``epochs`` epochs, then what ``selector`` chooses.

    Raises:
        ValueError: a negative number.
    """

    def __init__(self, selector: Selector, epochs: int) -> None:
        super().__init__(selector)
        if epochs < 0:
            raise ValueError(f"epochs: expected a number >= 0, got {epochs!r}")
        self.epochs = epochs

    def __call__(self, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        # The selector is asked also while it is not heard, for its state to move on.
        chosen = self.selector(scores)
        return {
            name: mask if scores[name].epoch >= self.epochs else torch.ones_like(mask)
            for name, mask in chosen.items()
        }

    def first(self, scores: Mapping[str, Scores]) -> Mapping[str, Tensor] | None:
        return super().first(scores) if self.epochs == 0 else None

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "epochs": self.epochs}

    def __repr__(self) -> str:
        return f"Warmup({self.selector!r}, epochs={self.epochs})"


class Rounded(_Wrapper):
    """Rounds every layer's active neurons up to a ``multiple``, for which kernels are made: a
    partial block costs as much as a whole one.

    The frozen neurons that move most thaw; under a `Schedule`, which measures no velocities, those
    of largest gradient, and without gradients any, drawn by the number of the choice. A layer
    frozen whole stays so: that is for free.

    Raises:
        ValueError: a multiple below 1.
    """

    def __init__(self, selector: Selector, multiple: int = 8) -> None:
        super().__init__(selector)
        if multiple < 1:
            raise ValueError(f"multiple: expected a number >= 1, got {multiple!r}")
        self.multiple = multiple

    def __call__(self, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        return self._rounded(self.selector(scores), scores)

    def first(self, scores: Mapping[str, Scores]) -> Mapping[str, Tensor] | None:
        chosen = super().first(scores)
        return None if chosen is None else self._rounded(chosen, scores)

    def _rounded(
        self, chosen: Mapping[str, Tensor], scores: Mapping[str, Scores]
    ) -> dict[str, Tensor]:
        return {name: self._round(mask, _worth(scores[name])) for name, mask in chosen.items()}

    def _round(self, mask: Tensor, worth: Tensor) -> Tensor:
        count = int(mask.sum())
        wanted = min(-(-count // self.multiple) * self.multiple, mask.numel())
        order = worth.masked_fill(mask, -1).argsort(descending=True, stable=True)
        return mask.index_fill(0, order[: wanted - count], True)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "multiple": self.multiple}

    def __repr__(self) -> str:
        return f"Rounded({self.selector!r}, multiple={self.multiple})"


def _worth(layer: Scores) -> Tensor:
    """By which frozen neurons thaw, fp64 `[C]`, >= 0; what is not known comes first."""
    worth = layer.velocity.abs()
    if worth.isnan().all():
        if layer.gradient is not None:
            worth = layer.gradient
        else:
            generator = torch.Generator().manual_seed(layer.epoch)
            worth = torch.rand(worth.numel(), generator=generator, dtype=torch.float64)
    return worth.nan_to_num(nan=torch.inf)
