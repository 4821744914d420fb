"""TimeBudget against a search through every prefix and every count, and the prefixes themselves."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import neq_kernels as neq
from neq_kernels.equilibrium.selectors import Scores, TimeBudget
from neq_kernels.equilibrium.selectors.cost import BackwardCost, LayerCost
from neq_kernels.profile import LayerTime, Profile
from neq_kernels.profile.cuts import Cut, find_cuts

pytestmark = pytest.mark.usefixtures("one_thread")


def row(name, count, size, ours, dense=10.0, dgrad=4.0):
    return LayerTime(name, "Conv2d", count / size, count, size, dense, dgrad, ours, ours, "packed")


def chain(dgrads=(0.0, 4.0, 4.0), others=6.0, size=4):
    """conv0, norm0, conv1, conv2: dense 10 ms each and `others` spread evenly above conv0."""
    names = [f"conv{i}" for i in range(len(dgrads))]
    rows = [
        row(name, count, size, dgrad + (10 - dgrad) * count / size, dgrad=dgrad)
        for name, dgrad in zip(names, dgrads, strict=True)
        for count in (size, size // 2)
    ]
    total = 10 * len(names) + others
    cuts = [Cut((), (names[0],), 0.0)]
    prefix = ()
    for i, name in enumerate(names):
        prefix += (name,) if i else (name, "norm0")
        silent = names[: i + 2]
        last = i + 1 == len(names)
        below = total if last else 10 * len(silent) + others * (i + 1) / len(names)
        cuts.append(Cut(prefix, tuple(silent), below))
    return Profile(tuple(rows), 20.0, total, tuple(cuts))


def scores(**velocities):
    return {
        name: Scores(
            velocity=torch.tensor(v, dtype=torch.float64),
            similarity=torch.ones(len(v)),
            active=torch.ones(len(v), dtype=torch.bool),
            parameters=9,
            kind="Conv2d",
            epoch=2,
        )
        for name, v in velocities.items()
    }


def test_a_layer_is_never_slower_with_fewer():
    cost = LayerCost([row("a", 8, 8, 10.0), row("a", 4, 8, 11.0), row("a", 2, 8, 5.0)])
    assert cost.ms == [4, 4.5, 5, 7.5, 10, 10, 10, 10, 10]
    assert [cost.free(count) for count in (0, 1, 4, 6)] == [0, 1, 8, 8]
    assert cost.per_neuron == 6 / 8


def test_the_backward_adds_up():
    profile = chain()
    cost = BackwardCost(profile)
    none, first, second, all_ = profile.cuts
    assert cost.ms({}, none) == 36
    assert cost.ms({"conv1": 2}, none) == 33
    # conv0 whole: no weight gradient there, none of conv1's input, a third of the others.
    assert cost.ms({"conv0": 0}, first) == pytest.approx(36 - 10 - 4 - 2)
    assert cost.ms({"conv0": 0, "conv1": 0}, second) == pytest.approx(36 - 20 - 4 - 4)
    assert cost.ms({"conv0": 0, "conv1": 0, "conv2": 0}, all_) == pytest.approx(0)


def test_layers_that_take_longer_alone_than_together_are_scaled():
    profile = chain(others=0)
    slow = Profile(profile.layers, 20.0, 15.0, (profile.cuts[0],))
    assert BackwardCost(slow).ms({}, slow.cuts[0]) == pytest.approx(15)
    assert BackwardCost(slow).ms({"conv1": 0}, slow.cuts[0]) == pytest.approx(15 - 3)


def best_by_search(profile, found, speedup):
    """The largest sum of |v| over every prefix and every count per layer, fastest neurons first."""
    cost, best = BackwardCost(profile), -1.0
    order = {n: sorted(s.velocity.abs().tolist(), reverse=True) for n, s in found.items()}
    names = [n for n in found if n in cost.layers]
    for cut in profile.cuts:
        choices = [[0] if n in cut.frozen else range(len(order[n]) + 1) for n in names]
        for counts in product(*choices):
            if cost.ms(dict(zip(names, counts, strict=True)), cut) <= cost.dense_ms / speedup:
                value = sum(sum(order[n][:c]) for n, c in zip(names, counts, strict=True))
                value += sum(
                    sum(order[n]) for n in found if n not in cost.layers and n not in cut.frozen
                )
                best = max(best, value)
    return best


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=16, max_size=16), st.sampled_from([1, 1.2, 1.5, 3]))
def test_as_good_as_a_search_and_within_the_budget(drawn, speedup):
    """With straight costs greedy is at most one neuron short of the best."""
    profile = chain()
    v = [x / 100 for x in drawn]
    found = scores(conv0=v[:4], norm0=v[4:8], conv1=v[8:12], conv2=v[12:])
    budget = TimeBudget(speedup, profile)
    masks = budget(found)
    got = sum(float(s.velocity.abs()[masks[n]].sum()) for n, s in found.items())
    best = best_by_search(profile, found, speedup)
    assert best - max(v) - 1e-9 <= got <= best + 1e-9
    prediction = budget.prediction
    assert prediction.ms <= prediction.dense_ms / speedup + 1e-9
    assert prediction.active == sum(int(mask.sum()) for mask in masks.values())
    frozen = profile.cuts[0 if not prediction.prefix else 1].frozen
    assert not any(masks[name].any() for name in frozen)


def test_a_prefix_is_frozen_where_little_moves_beneath():
    found = scores(conv0=[1e-6] * 4, norm0=[1e-6] * 4, conv1=[1.0] * 4, conv2=[1.0] * 4)
    budget = TimeBudget(1.7, chain())
    masks = budget(found)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        "conv0": 0, "norm0": 0, "conv1": 4, "conv2": 4,
    }  # fmt: skip
    assert str(budget.prediction) == (
        "backward predicted 20 ms of 36 (1.80x), 8 of 16 neurons active, first 2 layers frozen"
    )
    assert budget.prediction.against(18.0) == (
        "backward of the last epoch: predicted 20 ms of 36 (1.80x), measured 18 ms (2.00x)"
    )


def test_neurons_that_cost_nothing_stay():
    rows = (row("a", 4, 4, 10.0), row("a", 3, 4, 10.0), row("a", 1, 4, 5.0))
    profile = Profile(rows, 1.0, 10.0, (Cut((), (), 0.0),))
    assert TimeBudget(1.0, profile)(scores(a=[0.1, 0.2, 0.3, 0.0]))["a"].all()
    masks = TimeBudget(1.9, profile)(scores(a=[0.1, 0.2, 0.3, 0.0]))
    assert masks["a"].tolist() == [False, False, True, False]


def test_a_layer_that_is_not_measured_keeps_its_prefix_from_freezing():
    found = scores(norm0=[0.0] * 4, conv1=[1.0] * 4, conv2=[1.0] * 4)
    budget = TimeBudget(1.2, chain())
    budget(found)
    assert budget.prediction.prefix == 0
    with pytest.raises(ValueError, match=r"speedup: expected at most 1\.50, .* got 1\.6"):
        TimeBudget(1.6, chain())(found)


def test_the_unknown_is_kept_as_what_moves_most():
    found = scores(conv0=[0.0] * 4, norm0=[0.0] * 4, conv1=[0.1] * 4, conv2=[float("nan")] * 4)
    assert TimeBudget(1.8, chain())(found)["conv2"].all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.5, chain()), ValueError, "speedup: expected a number >= 1, got 0.5"),
        ((float("nan"), chain()), ValueError, "speedup"),
        ((2, 3), TypeError, "profile: expected what neq.profile"),
        (
            (3, Profile((row("a", 4, 4, 10.0),), 1, 10, (Cut((), (), 0.0),))),
            ValueError,
            r"at most 2\.50",
        ),
    ],
)
def test_says_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        TimeBudget(*arguments)


class Residual(nn.Module):
    def __init__(self, token=False):
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.stem, self.left, self.right = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.token = nn.Parameter(torch.zeros(3)) if token else 0.0

    def forward(self, x):
        x = self.stem(x + self.token)
        return self.head(self.left(x).relu() + self.right(x))


def test_prefixes_of_a_residual_net():
    torch.manual_seed(0)
    cuts = find_cuts(neq.convert(Residual()), torch.randn(4, 3))
    assert [cut.frozen for cut in cuts] == [
        (), ("stem",), ("stem", "left"), ("stem", "left", "right"),
        ("stem", "left", "right", "head"),
    ]  # fmt: skip
    assert [set(cut.silent) for cut in cuts] == [
        {"stem"}, {"stem", "left", "right"}, {"stem", "left", "right"},
        {"stem", "left", "right", "head"}, {"stem", "left", "right", "head"},
    ]  # fmt: skip
    assert cuts[0].below_ms == 0
    assert all(cut.below_ms > 0 for cut in cuts[1:])


def test_what_trains_beneath_keeps_the_backward_going():
    torch.manual_seed(0)
    model = neq.convert(Residual(token=True))
    cuts = find_cuts(model, torch.randn(4, 3))
    assert all(cut.silent == () and cut.below_ms == 0 for cut in cuts)
    assert model.token.grad is None


def test_from_a_profile_to_the_sets_of_a_model(monkeypatch):
    torch.manual_seed(0)
    model = neq.convert(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3),
                      nn.Flatten(), nn.Linear(16 * 16, 10))
    )  # fmt: skip
    x = torch.randn(8, 3, 8, 8)
    profile = neq.profile(model, x, (1.0, 0.5, 0.25), seconds=0.01, progress=False)
    selector = TimeBudget(1.01, profile)
    tracker = neq.Equilibrium(model, [x], selector=selector, warmup=0)
    tracker.update(), tracker.update()
    prediction = selector.prediction
    assert prediction.speedup >= 1.01
    assert prediction.active == sum(s.count for n, s in neq.get_active(model).items() if n != "5")
    assert tracker.history[-1].values == {"predicted_ms": prediction.ms}
    assert str(prediction) in str(tracker.update())


def test_a_resumed_run_chooses_as_before_whatever_is_measured_then():
    found = scores(conv0=[0.1] * 4, norm0=[0.1] * 4, conv1=[1.0] * 4, conv2=[0.3] * 4)
    saved, other = TimeBudget(1.5, chain()), TimeBudget(1.2, chain((0.0, 1.0, 1.0), 60.0))
    masks = saved(found)
    other(found)
    assert other.prediction != saved.prediction
    other.load_state_dict(saved.state_dict())
    assert all(torch.equal(mask, other(found)[name]) for name, mask in masks.items())
    assert other.prediction == saved.prediction
