"""Dense training, NEq, and what it is compared with: which neurons train in the next epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import neq_kernels as neq


@dataclass(frozen=True)
class Setting:
    """What selectors need of a run beside their value.

    Attributes:
        seed: of what is drawn.
        kinds: of layers that compete for a budget of parameters.
        profile: measures the model: what `neq.profile` returns.
        calibrate: whether times measured in training may steer.
    """

    seed: int
    kinds: tuple[str, ...]
    profile: Callable[[], Any]
    calibrate: bool = True


# Name -> selector from a value.
SELECTORS: dict[str, Callable[[float, Setting], Any]] = {
    "neq": lambda epsilon, run: neq.selectors.Velocity(epsilon=epsilon),
    "random": lambda keep, run: neq.selectors.Random(keep=keep, seed=run.seed),
    "budget": lambda share, run: neq.selectors.ParameterBudget(share=share, kinds=run.kinds),
    "time": lambda speedup, run: neq.selectors.TimeBudget(
        speedup, run.profile(), calibrate=run.calibrate
    ),
}
METHODS = ("dense", *SELECTORS)


@dataclass(frozen=True)
class Method:
    """A way to choose neurons.

    Attributes:
        name: one of METHODS.
        value: epsilon of "neq"; share of neurons that "random" keeps; share of parameters of
            "budget"; wanted speed-up of the backward of "time"; None for "dense".
        propagate: of `neq.convert`; "active" is an approximation.

    Raises:
        ValueError: a value where there is none, or none where one is needed.
    """

    name: str = "neq"
    value: float | None = 1e-3
    propagate: str = "all"

    def __post_init__(self) -> None:
        if (self.name == "dense") != (self.value is None):
            wanted = "no --value" if self.name == "dense" else "a --value"
            raise ValueError(f"--method {self.name}: expected {wanted}, got {self.value}")

    def __str__(self) -> str:
        value = "" if self.value is None else f" {self.value:.4g}"
        return f"{self.name}{value}" + (", active" if self.propagate == "active" else "")

    def selector(self, setting: Setting) -> Any:
        assert self.value is not None
        return SELECTORS[self.name](self.value, setting)
