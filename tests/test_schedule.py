"""Choosing without a probe: when, by which gradients, and what a saved run goes on with."""

from collections import Counter

import pytest
import torch
from equilibrium_net import Net, X, make
from torch import nn

import neq_kernels as neq
from neq_kernels.equilibrium.selectors import (
    GradientNorm,
    ParameterBudget,
    Pinned,
    Sampled,
    Scores,
    TimeBudget,
    Velocity,
    needs,
)


def scores(gradient, parameters=4, kind="Linear"):
    size = len(gradient)
    return Scores(
        velocity=torch.full((size,), torch.nan),
        similarity=torch.full((size,), torch.nan),
        active=torch.ones(size, dtype=torch.bool),
        parameters=parameters,
        kind=kind,
        epoch=1,
        gradient=torch.tensor(gradient, dtype=torch.float64),
    )


def test_largest_gradient_per_parameter_within_the_budget():
    layers = {"cheap": scores([0.1, 0.4], 1), "dear": scores([0.5, 3.0], 10)}
    chosen = GradientNorm(11 / 22)(layers)
    assert {n: m.tolist() for n, m in chosen.items()} == {
        "cheap": [False, True], "dear": [False, True],
    }  # fmt: skip
    only = GradientNorm(0.5, kinds=("Conv2d",))({"a": scores([0.0] * 3)})
    assert only["a"].all()


def test_a_layer_without_gradient_is_not_frozen():
    masks = GradientNorm(0.5)({"a": scores([float("nan")] * 2), "b": scores([1.0, 9.0])})
    assert masks["a"].all()
    assert not masks["b"].any()
    masks = Sampled(0.5, by="gradient")({"a": scores([float("nan")] * 2), "b": scores([1.0, 9.0])})
    assert masks["a"].all()


@pytest.mark.parametrize(("by", "expected"), [("uniform", [0.25] * 4), ("gradient", None)])
def test_draws_are_as_likely_as_they_should_be(by, expected):
    weights = [1.0, 2.0, 5.0, 0.0]
    expected = expected or [w / 8 for w in weights]
    sampled, count = Sampled(0.25, by=by, seed=3), Counter()
    for _ in range(4000):
        count[int(sampled({"a": scores(weights)})["a"].nonzero())] += 1
    assert sum(count.values()) == 4000  # one at a time, of four with equal parameters
    for place, share in enumerate(expected):
        assert abs(count[place] / 4000 - share) < 0.04


def test_draws_keep_to_the_budget_and_go_on_after_a_resume():
    layers = {"a": scores([1.0] * 20), "b": scores([1.0] * 5, 40)}
    one, two = Sampled(0.5, seed=1), Sampled(0.9, seed=7)
    first = one(layers)
    spent = 4 * int(first["a"].sum()) + 40 * int(first["b"].sum())
    assert 140 - 40 < spent <= 140
    two.load_state_dict(one.state_dict())
    again = one(layers)
    assert not torch.equal(first["a"], again["a"])
    assert torch.equal(two(layers)["a"], again["a"])


class Run:
    """Five linear neurons whose gradients are what they are told to be."""

    def __init__(self, selector, **arguments):
        torch.manual_seed(0)
        self.model = neq.convert(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        neq.protect(self.optimizer, self.model)
        self.schedule = neq.Schedule(self.model, selector, **arguments)
        self.active = []

    def step(self, scale=(1.0,) * 5):
        self.optimizer.zero_grad()
        (self.model[0](X) * torch.tensor(scale)).sum().backward()
        self.optimizer.step()
        self.active.append(self.model[0].active.count)
        return self.schedule.step()


def test_when_it_chooses_and_when_it_looks():
    """Steps 1, 4, 7 are dense, and chosen by; between them two of five train."""
    run = Run(GradientNorm(0.4), every=3)
    assert [run.step() for _ in range(8)] == [True, False, False] * 2 + [True, False]
    assert run.active == [5, 2, 2, 5, 2, 2, 5, 2]


def test_without_gradients_no_step_is_dense_but_the_first():
    run = Run(Sampled(0.4), every=3)
    seen = set()
    for _ in range(13):
        run.step()
        seen.add(tuple(run.model[0].active.index.tolist()))
    assert run.active == [5] + [2] * 12
    assert len(seen) > 2


def test_the_neurons_that_learn_most_train():
    run = Run(GradientNorm(0.4), every=2)
    run.step((1.0, 9.0, 2.0, 8.0, 3.0))
    assert run.model[0].active.index.tolist() == [1, 3]
    before = run.model[0].weight.detach().clone()
    run.step()
    moved = (run.model[0].weight != before).any(1)
    assert moved.tolist() == [False, True, False, True, False]
    run.step((7.0, 1.0, 2.0, 1.0, 9.0))
    assert run.model[0].active.index.tolist() == [0, 4]


def test_scores_hold_the_norms_of_weight_and_bias_together():
    seen = {}

    def spy(scores):
        seen.update(scores)
        return {name: s.active for name, s in scores.items()}

    spy.needs = "gradient"
    run = Run(spy, every=2)
    run.step((1.0, 2.0, 3.0, 4.0, 0.0))
    layer = run.model[0]
    expected = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1).double().norm(dim=1)
    torch.testing.assert_close(seen["0"].gradient, expected)
    assert (seen["0"].parameters, seen["0"].kind, seen["0"].epoch) == (4, "Linear", 1)
    assert set(seen) == {"0"}
    assert seen["0"].velocity.isnan().all()


def test_a_saved_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    run = Run(Sampled(0.4, seed=5), every=2)
    for _ in range(4):
        run.step()
    torch.save(run.schedule.state_dict(), tmp_path / "state.pt")
    other = Run(Sampled(0.4), every=7)
    other.schedule.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert neq.get_active(other.model) == neq.get_active(run.model)
    for _ in range(5):
        assert run.step() == other.step()
        assert neq.get_active(other.model) == neq.get_active(run.model)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), {}, "expected layers .* in this sched"),
        (None, {"exclude": ()}, "expected excluded"),
        (None, {"selector": GradientNorm(0.5)}, r"selector GradientNorm\(.* Sampled\("),
        (
            None,
            {"selector": Sampled(0.2)},
            r"Sampled\(share=0.2, .* got one with Sampled\(share=0.4",
        ),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(model, arguments, message):
    run = Run(Sampled(0.4), every=2)
    run.step()
    model = neq.convert(model or nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)))
    other = neq.Schedule(model, **{"selector": Sampled(0.4), **arguments})
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(run.schedule.state_dict())
    assert model[0].active.is_full
    assert (other.every, other.state_dict()["steps"]) == (100, 0)
    with pytest.raises(ValueError, match=r"what Schedule.state_dict\(\) of this version"):
        other.load_state_dict({})


def test_no_gradients_left():
    run = Run(GradientNorm(0.4), every=2)
    run.optimizer.zero_grad()
    with pytest.raises(RuntimeError, match=r"and before zero_grad\(\)"):
        run.schedule.step()
    assert run.step()


def test_who_needs_what():
    assert needs(Pinned(Velocity())) == needs(ParameterBudget(0.5)) == TimeBudget.needs
    assert TimeBudget.needs == "velocity"
    assert needs(Pinned(Sampled(0.5, by="gradient"))) == "gradient"
    assert needs(Sampled(0.5)) is None
    assert needs(lambda scores: {}) is None
    model = neq.convert(Net())
    with pytest.raises(ValueError, match=r"no velocities, got Pinned\(Velocity.*neq.Equilibrium"):
        neq.Schedule(model, Pinned(Velocity()))
    with pytest.raises(ValueError, match=r"no gradients, got GradientNorm.*neq.Schedule"):
        make(selector=GradientNorm(0.5))
    with pytest.raises(ValueError, match=r"use neq.Schedule\(model, selector\)"):
        GradientNorm(0.5)({"a": Scores(*[torch.zeros(1)] * 3, 1, "Linear", 1)})
    _, tracker = make(selector=Sampled(0.5), warmup=0)
    tracker.update()
    assert 0 < tracker.update().frozen < 15


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(selector=3), TypeError, "selector: expected a callable, got int"),
        (dict(every=1), ValueError, "every: expected a whole number of steps >= 2, got 1"),
        (dict(every=2.5), ValueError, "every"),
        (dict(exclude="haed"), ValueError, "exclude: expected a pattern"),
    ],
)
def test_says_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        neq.Schedule(neq.convert(Net()), **{"selector": Sampled(0.5), **arguments})


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: GradientNorm(0), "share: expected a share"),
        (lambda: Sampled(2), "share: expected a share"),
        (lambda: Sampled(0.5, by="loss"), "by: expected one of uniform, gradient, got 'loss'"),
    ],
)
def test_selectors_say_what_is_wrong(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()
