"""Selectors that spend a budget on the neurons that move most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Scores, check_share

FIRST = ("full", "random")


class ParameterBudget:
    """Trains the neurons of highest |v| per parameter, over the whole network, within a budget
    (*Ways to select neurons under a budget*, WACVW 2024, arXiv 2312.05282).

    Neurons are taken in falling order of |v_t| / parameters until the next one would exceed
    ``share`` of the parameters of all neurons that compete.

    Args:
        share: of the parameters, in (0, 1].
        kinds: torch classes whose neurons compete, such as ``("Conv2d",)``, which is the paper's
            choice; neurons of other layers stay active. None: every measured layer.
        first: the first epoch, in which nothing is known yet, trains all ("full"), or neurons drawn
            at random within the budget ("random").
        seed: of that draw.

    Raises:
        ValueError: a share outside (0, 1], or another ``first``.
    """

    needs = "velocity"

    def __init__(
        self,
        share: float,
        *,
        kinds: Sequence[str] | None = None,
        first: str = "full",
        seed: int = 0,
    ) -> None:
        if first not in FIRST:
            raise ValueError(f"first: expected one of {', '.join(FIRST)}, got {first!r}")
        self.share = check_share("share", share)
        self.kinds = None if kinds is None else tuple(kinds)
        self._first, self._seed = first, seed

    def __call__(self, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        worth = {name: s.velocity.abs() / max(s.parameters, 1) for name, s in scores.items()}
        return spend(self.share, self.kinds, scores, worth)

    def first(self, scores: Mapping[str, Scores]) -> dict[str, Tensor] | None:
        """The neurons of the first epoch; None for all."""
        if self._first == "full":
            return None
        generator = torch.Generator().manual_seed(self._seed)
        drawn = {
            name: torch.rand(s.velocity.numel(), generator=generator, dtype=torch.float64)
            for name, s in scores.items()
        }
        return spend(self.share, self.kinds, scores, drawn)

    def settings(self) -> dict[str, Any]:
        kinds = None if self.kinds is None else list(self.kinds)
        return {"share": self.share, "kinds": kinds}

    def state_dict(self) -> dict[str, Any]:
        return self.settings()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.share = check_share("share", state["share"])
        self.kinds = None if state["kinds"] is None else tuple(state["kinds"])

    def __repr__(self) -> str:
        return f"ParameterBudget(share={self.share:g})"


def spend(
    share: float,
    kinds: Sequence[str] | None,
    scores: Mapping[str, Scores],
    worth: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Masks of the neurons of highest `worth`, taken until the next one would exceed `share` of the
    parameters of all layers of `kinds` (None: all); the other layers are active."""
    masks = {name: torch.ones(w.numel(), dtype=torch.bool) for name, w in worth.items()}
    names = [name for name, s in scores.items() if not kinds or s.kind in kinds]
    if not names:
        return masks
    prices = [torch.full_like(worth[name], max(scores[name].parameters, 1)) for name in names]
    price = torch.cat(prices)
    # Of what is not known, NaN, nothing is frozen: it comes first.
    order = torch.cat([worth[name] for name in names]).nan_to_num(nan=torch.inf)
    order = order.argsort(descending=True, stable=True)
    affordable = price[order].cumsum(0) <= share * price.sum()
    taken = torch.zeros(price.numel(), dtype=torch.bool)
    taken[order[affordable]] = True
    parts = taken.split([worth[name].numel() for name in names])
    return {**masks, **dict(zip(names, parts, strict=True))}
