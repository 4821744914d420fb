"""Selectors beyond the paper's own: budgets, baselines, sets given beforehand, wrappers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import neq_kernels as neq
from examples.resnet import resnet32
from neq_kernels.equilibrium.selectors import (
    Fixed,
    GradientNorm,
    ParameterBudget,
    Pinned,
    Random,
    Replay,
    Rounded,
    Scores,
    Velocity,
    Warmup,
)


def scores(*velocities, parameters=9, kind="Conv2d", epoch=2, active=None):
    velocity = torch.tensor(velocities, dtype=torch.float64)
    return Scores(
        velocity=velocity,
        similarity=torch.ones_like(velocity),
        active=torch.ones(velocity.numel(), dtype=torch.bool) if active is None else active,
        parameters=parameters,
        kind=kind,
        epoch=epoch,
    )


def bits(mask):
    return "".join(str(int(bit)) for bit in mask)


def test_budget_takes_the_fastest_per_parameter_over_the_whole_net():
    layers = {"cheap": scores(0.1, 0.4, parameters=1), "dear": scores(0.5, -3.0, parameters=10)}
    # |v| / parameters: .1 .4 .05 .3, of 22 parameters
    assert {n: bits(m) for n, m in ParameterBudget(11 / 22)(layers).items()} == {
        "cheap": "01", "dear": "01",
    }  # fmt: skip
    assert {n: bits(m) for n, m in ParameterBudget(12 / 22)(layers).items()} == {
        "cheap": "11", "dear": "01",
    }  # fmt: skip
    assert {n: bits(m) for n, m in ParameterBudget(1.0)(layers).items()} == {
        "cheap": "11", "dear": "11",
    }  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(
    st.floats(0.01, 1.0),
    st.lists(
        st.tuples(st.lists(st.floats(-1, 1), min_size=1, max_size=6), st.integers(1, 50)),
        min_size=1, max_size=5,
    ),
)  # fmt: skip
def test_budget_is_greedy_and_never_exceeded(share, drawn):
    layers = {str(i): scores(*v, parameters=p) for i, (v, p) in enumerate(drawn)}
    masks = ParameterBudget(share)(layers)
    budget = share * sum(len(v) * p for v, p in drawn)
    left, cut = budget, False
    neurons = [
        (abs(v) / s.parameters, -place, s.parameters, bool(masks[name][i]))
        for place, (name, i, v, s) in enumerate(
            (name, i, v, s) for name, s in layers.items() for i, v in enumerate(s.velocity.tolist())
        )
    ]
    for _, _, price, taken in sorted(neurons, key=lambda n: n[:2], reverse=True):
        cut = cut or price > left + 1e-9
        if abs(price - left) > 1e-9:
            assert taken is not cut
        left -= price


def test_budget_of_convolutions_only():
    layers = {"conv": scores(0.0, 1.0), "norm": scores(0.0, 0.0, kind="BatchNorm2d")}
    masks = ParameterBudget(0.5, kinds=("Conv2d",))(layers)
    assert (bits(masks["conv"]), bits(masks["norm"])) == ("01", "11")


def test_budget_of_the_first_epoch():
    layers = {"a": scores(*[0.0] * 40), "b": scores(*[0.0] * 10, parameters=36)}
    assert ParameterBudget(0.5).first(layers) is None
    drawn = ParameterBudget(0.5, first="random", seed=3).first(layers)
    spent = 9 * int(drawn["a"].sum()) + 36 * int(drawn["b"].sum())
    assert 0.5 * 720 - 36 <= spent <= 0.5 * 720
    again = ParameterBudget(0.5, first="random", seed=3).first(layers)
    other = ParameterBudget(0.5, first="random", seed=4).first(layers)
    assert torch.equal(drawn["a"], again["a"])
    assert not torch.equal(drawn["a"], other["a"])


def test_budget_never_freezes_the_unknown():
    masks = ParameterBudget(0.34)({"a": scores(float("nan"), 5.0, 0.1)})
    assert bits(masks["a"]) == "100"


@pytest.mark.parametrize(
    ("keep", "percent"), [(0.8, 18.6678), (0.6084, 38.2121), (0.5, 49.7809), (0.2, 78.1770)]
)
def test_random_freezes_the_published_counts(keep, percent):
    sets = neq.get_active(neq.convert(resnet32()))
    layers = {name: scores(*[0.0] * s.size) for name, s in sets.items() if name != "fc"}
    masks = Random(keep)(layers)
    frozen = sum(int((~mask).sum()) for mask in masks.values())
    assert sum(mask.numel() for mask in masks.values()) == 2272
    assert round(100 * frozen / 2282, 4) == percent


def test_random_draws_anew_and_goes_on_after_a_resume():
    layers = {"a": scores(*[0.0] * 20), "b": scores(*[0.0] * 20)}
    one, two = Random(0.5, seed=1), Random(0.5, seed=1)
    first = one(layers)
    assert torch.equal(two(layers)["a"], first["a"])
    assert not torch.equal(first["a"], first["b"])
    second = one(layers)
    assert not torch.equal(first["a"], second["a"])
    resumed = Random(0.9, seed=7)
    resumed.load_state_dict(two.state_dict())
    assert torch.equal(resumed(layers)["a"], second["a"])


def test_random_is_uniform():
    random = Random(0.5)
    counts = sum(random({"a": scores(*[0.0] * 8)})["a"].double() for _ in range(2000))
    assert (counts / 2000 - 0.5).abs().max() < 0.05


def test_fixed_takes_every_form_of_a_set():
    fixed = Fixed({
        "mask": torch.tensor([True, False, True]),
        "list": [1],
        "set": neq.ActiveSet.from_index([0, 2], 3),
        "not measured": [0],
    })  # fmt: skip
    layers = {name: scores(0.0, 0.0, 0.0) for name in ("mask", "list", "set", "other")}
    expected = {"mask": "101", "list": "010", "set": "101", "other": "111"}
    assert {name: bits(mask) for name, mask in fixed(layers).items()} == expected
    assert {name: bits(mask) for name, mask in fixed.first(layers).items()} == expected


def test_replay_goes_update_by_update_and_stays_at_the_last():
    replay = Replay([{"a": [0]}, {"a": [1]}])
    seen = [bits(replay({"a": scores(0.0, 0.0, epoch=e)})["a"]) for e in (1, 2, 3, 9)]
    assert seen == ["10", "01", "01", "01"]


def test_pinned_thaws_nobody():
    active = torch.tensor([True, False, True])
    assert bits(Pinned(Velocity(0.5))({"a": scores(1.0, 1.0, 0.0, active=active)})["a"]) == "100"


def test_warmup_trains_all_and_asks_meanwhile():
    warm = Warmup(Random(0.5, seed=0), 3)
    plain = Random(0.5, seed=0)
    for epoch in (1, 2, 3, 4):
        layers = {"a": scores(*[0.0] * 10, epoch=epoch)}
        mask, chosen = warm(layers)["a"], plain(layers)["a"]
        assert torch.equal(mask, chosen if epoch >= 3 else torch.ones(10, dtype=torch.bool))
    assert warm.first({}) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.integers(1, 9), st.floats(0, 1))
def test_rounded_thaws_the_nearest(velocities, multiple, epsilon):
    layers = {"a": scores(*velocities)}
    inner, mask = Velocity(epsilon)(layers)["a"], Rounded(Velocity(epsilon), multiple)(layers)["a"]
    count = int(inner.sum())
    assert not (inner & ~mask).any(), "nobody is frozen by rounding"
    assert int(mask.sum()) == min(-(-count // multiple) * multiple, len(velocities))
    v = layers["a"].velocity.abs()
    thawed, frozen = mask & ~inner, ~mask
    if thawed.any() and frozen.any():
        assert v[thawed].min() >= v[frozen].max()


def test_rounded_rounds_the_first_epoch_too():
    layers = {"a": scores(*[0.0] * 12)}
    assert int(Rounded(Fixed({"a": [3]}), 8).first(layers)["a"].sum()) == 8
    assert Rounded(Velocity(), 8).first(layers) is None


def unmeasured(size, gradient=None, epoch=1):
    """What a Schedule knows of a layer."""
    nothing = torch.full((size,), torch.nan, dtype=torch.float64)
    norms = None if gradient is None else torch.tensor(gradient, dtype=torch.float64)
    active = torch.ones(size, dtype=torch.bool)
    return Scores(nothing, nothing, active, 9, "Linear", epoch, gradient=norms)


def test_rounded_without_velocities_goes_by_gradients():
    layers = {"a": unmeasured(6, [1.0, 5.0, 3.0, 2.0, 4.0, 0.5])}
    rounded = Rounded(GradientNorm(1 / 6), multiple=3)
    assert bits(rounded(layers)["a"]) == "011010"


def test_rounded_without_either_draws_anew_every_time_and_alike_everywhere():
    inner = Fixed({"a": [5]})
    drawn = [Rounded(inner, 4)({"a": unmeasured(40, epoch=e)})["a"] for e in range(1, 9)]
    assert all(int(mask.sum()) == 4 and mask[5] for mask in drawn)
    assert len({bits(mask) for mask in drawn}) == 8
    assert torch.equal(drawn[0], Rounded(inner, 4)({"a": unmeasured(40)})["a"])


def test_wrappers_carry_their_selectors_state():
    saved = Rounded(Pinned(Velocity(0.25)), 4).state_dict()
    other = Rounded(Pinned(Velocity(0.5)), 4)
    other.load_state_dict(saved)
    assert other.selector.selector.epsilon == 0.25
    with pytest.raises(ValueError, match="expected one of Warmup, got one of Pinned"):
        Rounded(Warmup(Velocity(), 1)).load_state_dict(saved)
    plain = Pinned(lambda scores: {})
    plain.load_state_dict(plain.state_dict())


def test_names():
    assert repr(Rounded(Pinned(Random(0.5)), 4)) == "Rounded(Pinned(Random(keep=0.5)), multiple=4)"
    assert repr(Warmup(ParameterBudget(0.25), 2)) == "Warmup(ParameterBudget(share=0.25), epochs=2)"
    assert repr(Fixed({"a": [0]})) == "Fixed(1 layers)"
    assert repr(Replay([{}, {}])) == "Replay(2 updates)"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Random(0), ValueError, r"keep: expected a share in \(0, 1\], got 0"),
        (lambda: Random(float("nan")), ValueError, "keep"),
        (lambda: ParameterBudget(1.1), ValueError, "share: expected"),
        (lambda: ParameterBudget(0.5, first="some"), ValueError, "first: .*full, random.*'some'"),
        (lambda: Fixed([1]), TypeError, "active: expected a mapping"),
        (lambda: Replay([]), ValueError, "at least one update"),
        (lambda: Pinned(3), TypeError, "selector: expected a callable, got int"),
        (lambda: Warmup(Velocity(), -1), ValueError, "epochs: expected"),
        (lambda: Rounded(Velocity(), 0), ValueError, "multiple: expected"),
        (lambda: Fixed({"b": [0]})({"a": scores(0.0)}), ValueError, r"such as 'a', got \['b'\]"),
        (
            lambda: Fixed({"a": torch.ones(3, dtype=torch.bool)})({"a": scores(0.0)}),
            ValueError,
            r"active\['a'\]: expected 1 neurons, got 3",
        ),
    ],
)
def test_says_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message):
        make()
