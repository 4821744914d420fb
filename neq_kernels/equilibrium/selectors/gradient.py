"""Selectors that need no probe: by gradient, and at random within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Scores, check_share
from .budget import spend

BY = ("uniform", "gradient")


class GradientNorm:
    """Trains the neurons of largest gradient per parameter, over the whole network, within a budget
    of parameters; for a `Schedule`.

    Neurons are taken in falling order of the norm of their last gradient, weight and bias together,
    by their parameters, until the next one would exceed ``share``.

    Args:
        share: of the parameters of all neurons that compete, in (0, 1].
        kinds: torch classes whose neurons compete, such as ``("Linear",)``; neurons of other layers
            stay active. None: every layer.

    Raises:
        ValueError: a share outside (0, 1].
    """

    needs: str | None = "gradient"

    def __init__(self, share: float, *, kinds: Sequence[str] | None = None) -> None:
        self.share = check_share("share", share)
        self.kinds = None if kinds is None else tuple(kinds)

    def __call__(self, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        worth = {name: gradient(s) / max(s.parameters, 1) for name, s in scores.items()}
        return spend(self.share, self.kinds, scores, worth)

    def settings(self) -> dict[str, Any]:
        return {"share": self.share, "kinds": None if self.kinds is None else list(self.kinds)}

    def state_dict(self) -> dict[str, Any]:
        return self.settings()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.share = check_share("share", state["share"])
        self.kinds = None if state["kinds"] is None else tuple(state["kinds"])

    def __repr__(self) -> str:
        return f"GradientNorm(share={self.share:g})"


class Sampled:
    """Trains neurons drawn at random, anew at every choice, within a budget of parameters.

    Drawn one after the other without replacement, over the whole network, until the next one would
    exceed ``share``. Stochastic choices that change are reported to beat fixed ones in fine-tuning
    (*TraDy*, arXiv 2510.19675); this is the idea, not that paper's procedure.

    Args:
        share: of the parameters of all neurons that compete, in (0, 1].
        by: "uniform": each of the neurons left is as likely as the other. "gradient": in proportion
            to the norm of its last gradient; for a `Schedule`.
        kinds: as for `GradientNorm`.
        seed: of the draws; saved states go on with them.

    Raises:
        ValueError: a share outside (0, 1], or another ``by``.
    """

    def __init__(
        self,
        share: float,
        *,
        by: str = "uniform",
        kinds: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        if by not in BY:
            raise ValueError(f"by: expected one of {', '.join(BY)}, got {by!r}")
        self.share = check_share("share", share)
        self.kinds = None if kinds is None else tuple(kinds)
        self.needs = "gradient" if by == "gradient" else None
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        return spend(self.share, self.kinds, scores, {n: self._keys(s) for n, s in scores.items()})

    def _keys(self, layer: Scores) -> Tensor:
        # The order of log(w) + Gumbel noise is that of draws without replacement, each by w.
        size = layer.active.numel()
        noise = torch.empty(size, dtype=torch.float64).exponential_(generator=self._generator)
        weights = torch.ones(size).double() if self.needs is None else gradient(layer)
        return weights.log() - noise.log()

    def settings(self) -> dict[str, Any]:
        kinds = None if self.kinds is None else list(self.kinds)
        by = "uniform" if self.needs is None else "gradient"
        return {"share": self.share, "by": by, "kinds": kinds}

    def state_dict(self) -> dict[str, Any]:
        kinds = None if self.kinds is None else list(self.kinds)
        return {"share": self.share, "kinds": kinds, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.share = check_share("share", state["share"])
        self.kinds = None if state["kinds"] is None else tuple(state["kinds"])
        self._generator.set_state(state["generator"].cpu())

    def __repr__(self) -> str:
        return f"Sampled(share={self.share:g})"


def gradient(layer: Scores) -> Tensor:
    """The layer's gradient norms; ValueError if there are none."""
    if layer.gradient is None:
        raise ValueError("scores: expected gradients, got none; use neq.Schedule(model, selector)")
    return layer.gradient
