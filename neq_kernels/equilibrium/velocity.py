"""Velocity of a neuron's similarity, and the two published definitions of equilibrium.

The paper's text (NEq, arXiv 2207.09455, section 3) and the code behind its tables differ:

              definition="paper"                       definition="reference"
similarity    one cosine over all samples and          cosine per sample over its positions,
              positions                                then the mean over samples
velocity      v_t = dphi_t - mu v_{t-1}                v_t = dphi_t - dphi_{t-1} + mu v_{t-1}
equilibrium   |v_t| < epsilon                          |v_t| <= epsilon

with dphi_t = phi_t - phi_{t-1} and phi_0 := 1, dphi_0 := 0, v_0 := 0. Two zero vectors have
similarity 1, one zero vector has 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .similarity import ConcatenatedCosine, MeanCosine, Similarity

Track = dict[
    str, Tensor
]  # what a layer carries from pass to pass, each fp64 [C], at least "similarity" and "velocity"


@dataclass(frozen=True)
class Definition:
    """What equilibrium means: how outputs are compared and how the comparison moves.

    `similarity()` makes a fresh accumulator for one layer and one pass, `start(size)` a layer's
    track before its first comparison, `step(track, phi, momentum)` the track after the next one;
    `inclusive` says whether |v| = epsilon is equilibrium.
    """

    similarity: Callable[[], Similarity]
    start: Callable[[int], Track]
    step: Callable[[Track, Tensor, float], Track]
    inclusive: bool


def paper_start(size: int) -> Track:
    """phi_0 := 1 and v_0 := 0 for `size` neurons."""
    return {
        "similarity": torch.ones(size, dtype=torch.float64),
        "velocity": torch.zeros(size, dtype=torch.float64),
    }


def paper_step(track: Track, phi: Tensor, momentum: float) -> Track:
    """v_t = phi_t - phi_{t-1} - mu * v_{t-1}; `phi` is fp64 `[C]`."""
    velocity = phi - track["similarity"] - momentum * track["velocity"]
    return {"similarity": phi, "velocity": velocity}


def reference_start(size: int) -> Track:
    """phi_0 := 1, dphi_0 := 0 and v_0 := 0 for `size` neurons."""
    return {**paper_start(size), "variation": torch.zeros(size, dtype=torch.float64)}


def reference_step(track: Track, phi: Tensor, momentum: float) -> Track:
    """v_t = dphi_t - dphi_{t-1} + mu * v_{t-1}; `phi` is fp64 `[C]`."""
    variation = phi - track["similarity"]
    velocity = variation - track["variation"] + momentum * track["velocity"]
    return {"similarity": phi, "velocity": velocity, "variation": variation}


DEFINITIONS = {
    "paper": Definition(ConcatenatedCosine, paper_start, paper_step, inclusive=False),
    "reference": Definition(MeanCosine, reference_start, reference_step, inclusive=True),
}


def get_definition(name: str) -> Definition:
    """The definition called `name`; ValueError for any other name."""
    if name not in DEFINITIONS:
        accepted = ", ".join(repr(known) for known in DEFINITIONS)
        raise ValueError(f"definition: expected one of {accepted}, got {name!r}")
    return DEFINITIONS[name]


def check_momentum(momentum: float) -> float:
    """`momentum`, if in [0, 1), else ValueError; a UserWarning above the paper's bound of 0.5."""
    if not 0 <= momentum < 1:
        raise ValueError(
            f"momentum: expected a number in [0, 1), got {momentum!r}; the paper uses 0.5"
        )
    if momentum > 0.5:
        warnings.warn(
            f"momentum: expected at most 0.5, the paper's bound, got {momentum}; "
            "it is used as given",
            UserWarning,
            stacklevel=3,
        )
    return float(momentum)
