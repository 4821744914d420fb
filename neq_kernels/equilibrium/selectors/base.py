"""What a selector sees and gives, and the paper's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from neq_kernels.reference import moving


@dataclass(frozen=True)
class Scores:
    """What is known of the C neurons of one layer after an update.

    Attributes:
        velocity: v_t, fp64 `[C]` on the CPU; NaN under a `Schedule`, which measures none.
        similarity: phi_t, likewise.
        active: who trained until now, bool `[C]` on the CPU.
        parameters: how many parameters one neuron has.
        kind: the torch class, such as "Conv2d".
        epoch: t, from 1 on; under a `Schedule` the number of the choice.
        inclusive: whether |v| = epsilon is equilibrium, as `definition="reference"` has it.
        gradient: norm of each neuron's last gradient, weight and bias together, fp64 `[C]` on the
            CPU, NaN where there was none; None under an `Equilibrium`.
    """

    velocity: Tensor
    similarity: Tensor
    active: Tensor
    parameters: int
    kind: str
    epoch: int
    inclusive: bool = False
    gradient: Tensor | None = None


def needs(selector: Any) -> str | None:
    """What a selector, or the one it wraps, has to be shown: "velocity", "gradient", or None."""
    if "selector" in getattr(selector, "__dict__", {}) and not hasattr(selector, "needs"):
        return needs(selector.selector)
    return getattr(selector, "needs", None)


def settings(selector: Any) -> dict[str, Any]:
    """What a selector was made with, for a saved run to be compared with: its class, and what its
    `settings()` gives, if it offers that: a dict of plain values."""
    given = getattr(selector, "settings", None)
    return {"name": type(selector).__name__, "settings": given() if given else {}}


def described(made: Mapping[str, Any]) -> str:
    """What `settings` gave, as one would write it."""
    inner = [
        described(v) if isinstance(v, Mapping) and set(v) == {"name", "settings"} else f"{k}={v!r}"
        for k, v in made["settings"].items()
    ]
    return f"{made['name']}({', '.join(inner)})"


class Selector(Protocol):
    """See the module's docstring."""

    def __call__(self, scores: Mapping[str, Scores]) -> Mapping[str, Tensor]: ...


class Velocity:
    """Freezes exactly the neurons with |v_t| < epsilon (NEq, arXiv 2207.09455), or <= epsilon under
    `definition="reference"`; frozen ones may thaw.

    Args:
        epsilon: >= 0, in units of cosine similarity per epoch; 0 freezes nobody (under
            "reference", who has not moved at all).

    Raises:
        ValueError: epsilon is negative or NaN.
    """

    needs = "velocity"

    def __init__(self, epsilon: float = 1e-3) -> None:
        self.epsilon = _check_epsilon(epsilon)

    def __call__(self, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        return {name: self._moving(layer) for name, layer in scores.items()}

    def _moving(self, layer: Scores) -> Tensor:
        if layer.inclusive:
            # Not by the least number above epsilon: a denormal one is zero where they are flushed.
            return layer.velocity.abs() > self.epsilon
        return moving(layer.velocity, self.epsilon)

    def settings(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon}

    def state_dict(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epsilon = _check_epsilon(state["epsilon"])

    def __repr__(self) -> str:
        return f"Velocity(epsilon={self.epsilon:g})"


def _check_epsilon(epsilon: float) -> float:
    if math.isnan(epsilon) or epsilon < 0:
        raise ValueError(f"epsilon: expected a number >= 0, got {epsilon!r}; the paper uses 1e-3")
    return float(epsilon)


def check_share(argument: str, share: float) -> float:
    """`share`, if in (0, 1], else ValueError."""
    if not 0 < share <= 1:
        raise ValueError(f"{argument}: expected a share in (0, 1], got {share!r}")
    return float(share)


def select(selector: Selector, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
    """The masks `selector` chooses; TypeError or ValueError names what is wrong with them."""
    chosen = selector(scores)
    if not isinstance(chosen, Mapping) or set(chosen) != set(scores):
        got = f"{sorted(chosen)}" if isinstance(chosen, Mapping) else type(chosen).__name__
        raise ValueError(
            f"selector {selector!r}: expected masks for exactly {sorted(scores)}, got {got}"
        )
    for name, mask in chosen.items():
        _check_mask(f"selector {selector!r}, layer {name!r}", mask, scores[name].velocity.numel())
    return dict(chosen)


def _check_mask(whose: str, mask: Any, size: int) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{whose}: expected a bool mask on the CPU, got {type(mask).__name__}")
    if mask.dtype != torch.bool or mask.device.type != "cpu":
        got = f"{mask.dtype} on {mask.device}"
        raise TypeError(f"{whose}: expected a bool mask on the CPU, got {got}")
    if mask.shape != (size,):
        raise ValueError(f"{whose}: expected shape {(size,)}, got {tuple(mask.shape)}")
