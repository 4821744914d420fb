from dataclasses import replace

import pytest
import torch

from neq_kernels.equilibrium.selectors import Scores, Velocity, select


def scores(*velocities, epoch=2):
    velocity = torch.tensor(velocities, dtype=torch.float64)
    return Scores(
        velocity=velocity,
        similarity=torch.ones_like(velocity),
        active=torch.ones(velocity.numel(), dtype=torch.bool),
        parameters=9,
        kind="Conv2d",
        epoch=epoch,
    )


def test_velocity_freezes_strictly_below_epsilon():
    eps = 0.25  # exact in binary, so that the border is the border
    masks = Velocity(eps)({"a": scores(0.0, eps, -eps, 0.2499, -0.2499, 1.0), "b": scores(-3.0)})
    assert masks["a"].tolist() == [False, True, True, False, False, True]
    assert masks["b"].tolist() == [True]


def test_the_reference_definition_freezes_at_epsilon_too():
    eps = 0.25
    layer = replace(scores(0.0, eps, -eps, 0.2500001, -0.2499, 1.0), inclusive=True)
    assert Velocity(eps)({"a": layer})["a"].tolist() == [False, False, False, True, False, True]
    still = replace(scores(0.0, -0.0, 5e-324), inclusive=True)
    assert Velocity(0)({"a": still})["a"].tolist() == [False, False, True]


def test_velocity_zero_freezes_nobody():
    assert Velocity(0)({"a": scores(0.0, -0.0)})["a"].all()


@pytest.mark.parametrize("epsilon", [-1e-9, float("nan"), -float("inf")])
def test_velocity_refuses(epsilon):
    with pytest.raises(ValueError, match=r"epsilon: expected a number >= 0, got"):
        Velocity(epsilon)


def test_velocity_state_round_trip():
    other = Velocity(0.5)
    other.load_state_dict(Velocity(2e-2).state_dict())
    assert other.epsilon == 2e-2
    assert repr(other) == "Velocity(epsilon=0.02)"
    with pytest.raises(ValueError, match="epsilon"):
        other.load_state_dict({"epsilon": -1})


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        ({}, ValueError, r"expected masks for exactly \['a'\], got \[\]"),
        ({"a": [True], "b": [True]}, ValueError, r"got \['a', 'b'\]"),
        (None, ValueError, "got NoneType"),
        ({"a": [True, True]}, TypeError, "layer 'a': expected a bool mask on the CPU, got list"),
        ({"a": torch.ones(2)}, TypeError, "got torch.float32 on cpu"),
        ({"a": torch.ones(2, dtype=torch.bool, device="meta")}, TypeError, "on meta"),
        (
            {"a": torch.ones(3, dtype=torch.bool)},
            ValueError,
            r"layer 'a': expected shape \(2,\), got \(3,\)",
        ),
    ],
)
def test_select_checks_what_a_selector_returns(chosen, error, message):
    with pytest.raises(error, match=message):
        select(lambda scores: chosen, {"a": scores(0.0, 1.0)})


def test_select_returns_the_masks():
    mask = torch.tensor([True, False])
    assert select(lambda scores: {"a": mask}, {"a": scores(0.0, 1.0)})["a"] is mask
