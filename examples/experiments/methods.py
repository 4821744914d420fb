"""Dense training, NEq, and what it is compared with: which neurons train in the next epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import neq_kernels as neq

# Name -> selector from (value, seed, the kinds of layer that compete for a budget of parameters).
SELECTORS: dict[str, Callable[[float, int, tuple[str, ...]], Any]] = {
    "neq": lambda epsilon, seed, kinds: neq.selectors.Velocity(epsilon=epsilon),
    "random": lambda keep, seed, kinds: neq.selectors.Random(keep=keep, seed=seed),
    "budget": lambda share, seed, kinds: neq.selectors.ParameterBudget(share=share, kinds=kinds),
    "time": lambda speedup, seed, kinds: neq.selectors.TimeBudget(speedup=speedup),
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

    def selector(self, seed: int, kinds: tuple[str, ...]) -> Any:
        assert self.value is not None
        return SELECTORS[self.name](self.value, seed, kinds)
