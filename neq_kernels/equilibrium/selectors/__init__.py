"""Selectors: which neurons train until the next update.

A selector is any callable that takes a mapping from layer name to `Scores` and returns a mapping
from the same names to bool masks `[C]` on the CPU, True where the neuron is active. It sees the
layers that could be measured; the others stay active. One that carries state over updates offers
`state_dict()` and `load_state_dict(state)` of plain values and tensors; one that also chooses for
the first epoch, in which nothing has been compared yet, offers `first(scores)`. What a resumed run
must have in common with the saved one, `settings()` gives as a dict of plain values. Its attribute
`needs` may say "velocity", which an `Equilibrium` measures, or "gradient", which a `Schedule` does.
One that predicts the backward's time has `prediction` and `measured(ms)`, as `TimeBudget` has.
"""

from .base import Scores, Selector, Velocity, needs, select
from .budget import ParameterBudget
from .given import Fixed, Random, Replay
from .gradient import GradientNorm, Sampled
from .time_budget import Prediction, TimeBudget
from .wrappers import Pinned, Rounded, Warmup

__all__ = [
    "Fixed",
    "GradientNorm",
    "ParameterBudget",
    "Pinned",
    "Prediction",
    "Random",
    "Replay",
    "Rounded",
    "Sampled",
    "Scores",
    "Selector",
    "TimeBudget",
    "Velocity",
    "Warmup",
    "needs",
    "select",
]
