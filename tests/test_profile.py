"""neq.profile: what it sees of a model, what it makes of times, and what it leaves behind."""

import csv
import sys

import pytest
import torch
from torch import nn

import neq_kernels as neq
from neq_kernels import planner
from neq_kernels.gradients import Needed
from neq_kernels.profile import LayerTime, Profile, measure
from neq_kernels.profile import profile as profile_function
from neq_kernels.profile.calls import capture

pytestmark = pytest.mark.usefixtures("one_thread")


class Twice(nn.Module):
    """A layer called twice with two shapes, a strided convolution, a frozen one, and a head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)
        self.frozen = nn.Conv2d(8, 8, 1).requires_grad_(False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.twice(self.twice(self.first(x)))
        return self.head(self.norm(self.frozen(x)).mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Twice()


@pytest.fixture
def clean_plan(monkeypatch, tmp_path):
    monkeypatch.setenv("NEQ_CACHE", str(tmp_path))
    planner.plan.clear()
    yield
    planner.plan.clear()


@pytest.fixture
def times(monkeypatch):
    """Milliseconds by way, instead of the clock's; each way still runs once."""
    times = {
        "plain": 4.0,
        "dgrad": 2.5,
        "dense": 4.5,
        "packed": 3.0,
        "direct": 3.5,
        "direct+dx": 3.6,
    }

    def interleave(ways, seconds, device, clock):
        for way in ways.values():
            way(0)
        return {name: times[name] for name in ways}

    # The package has the function's name.
    monkeypatch.setattr(sys.modules["neq_kernels.profile"], "interleave", interleave)
    return times


X = torch.randn(2, 3, 8, 8)


def test_captures_what_the_backward_meets(model):
    neq.convert(model)
    calls = capture(model, X)
    assert list(calls) == ["first", "twice", "head"]
    (first,), (second, third), (head,) = calls.values()
    assert first.needed == Needed(False, True, True)
    assert second.needed == third.needed == Needed(True, True, False)
    # In the order of the backward: the later call comes first.
    assert (second.dy.shape, third.dy.shape) == ((2, 8, 2, 2), (2, 8, 4, 4))
    assert third.x.shape == (2, 8, 8, 8)
    assert third.conv.stride == (2, 2)
    assert (head.x.shape, head.dy.shape, head.size) == ((2, 8), (2, 4), 4)


def test_captures_channels_last_and_autocast(model):
    neq.convert(model)
    with torch.autocast("cpu", torch.bfloat16):
        calls = capture(
            model.to(memory_format=torch.channels_last),
            X.to(memory_format=torch.channels_last),
        )
    first = calls["first"][0]
    assert {first.x.dtype, first.dy.dtype, first.weight.dtype} == {torch.bfloat16}
    made = first.x.make()
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert made.dtype == torch.bfloat16


def test_captures_unbatched_and_padded_convolutions():
    model = neq.convert(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")))
    (call,) = capture(model, (torch.randn(2, 5, 5),))["0"]
    assert call.x.shape == (1, 2, 7, 7)
    assert call.conv.padding == (0, 0)


def test_rows_add_up(model, times, clean_plan):
    found = profile_function(model, X, active=(1.0, 0.5), progress=False)
    assert found.shares == (1.0, 0.5)
    rows = {row.name: row for row in found.at(0.5)}
    assert list(rows) == ["first", "twice", "head"]
    twice = rows["twice"]
    assert (twice.count, twice.size, twice.kind) == (4, 8, "Conv2d")
    assert (twice.dense_ms, twice.dgrad_ms, twice.ours_ms) == (8.0, 5.0, 6.0)  # two calls
    assert twice.ceiling_ms == 2 * (2.5 + 0.5 * 1.5)
    assert twice.wgrad_ms == 3.0
    assert twice.speedup == pytest.approx(8 / 6)
    assert twice.of_ceiling == pytest.approx(6.5 / 6)
    assert twice.path == "packed"
    first = rows["first"]  # its input needs no gradient: all of it is wgrad
    assert (first.dgrad_ms, first.ceiling_ms) == (0.0, 2.0)
    assert all(row.path == "plain" and row.ours_ms == row.dense_ms for row in found.at(1.0))


def test_training_knows_what_profile_measured(model, times, clean_plan, monkeypatch):
    monkeypatch.setenv("NEQ_PLAN", "measure")
    monkeypatch.setattr(planner.rule, "advantage", lambda geometry: 2.0)
    profile_function(model, X, active=(0.5,), progress=False)
    neq.convert(model)
    neq.set_active(model, {"first": [0, 2, 3, 5], "twice": [1, 2, 4, 7]})
    model(X).sum().backward()
    assert model.first._plan.why == "measured"
    assert model.twice._plan.why == "measured"
    assert model.first._plan.path == "packed"


def test_propagate_active_has_its_own_ceiling(model, times):
    neq.convert(model, propagate="active")
    row = profile_function(model, X, active=(0.25,), progress=False).layers[1]
    assert row.ceiling_ms == 2 * 0.25 * 4.0


def test_expected_gains():
    row = LayerTime("a", "Linear", 0.5, 4, 8, 10.0, 5.0, 8.0, 7.5, "packed")
    found = Profile((row,), forward_ms=10.0, backward_ms=22.0)
    assert found.backward_speedup(0.5) == pytest.approx(22 / 20)
    assert found.step_speedup(0.5) == pytest.approx(32 / 30)
    text = str(found)
    assert "50% active: backward 1.10x, forward and backward 1.07x" in text
    assert " 1.33x " in text  # the ceiling's speed-up


@pytest.mark.parametrize("converted", [True, False])
def test_leaves_the_model_as_it_was(model, times, converted):
    if converted:
        neq.convert(model)
        neq.set_active(model, {"first": [1]})
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    sets = neq.get_active(model)
    random = torch.get_rng_state()
    profile_function(model, X, progress=False)
    assert torch.equal(torch.get_rng_state(), random)
    assert [type(module) for module in model.modules()] == classes
    assert neq.get_active(model) == sets
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in (model.first, model.twice, model.head))


def test_csv(model, times, tmp_path):
    found = profile_function(model, X, progress=False)
    found.to_csv(tmp_path / "profile.csv")
    with open(tmp_path / "profile.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.layers) == 9
    assert rows[0]["name"] == "first"
    assert float(rows[4]["speedup"]) == pytest.approx(4 / 3)
    assert set(rows[0]) >= {"wgrad_ms", "dgrad_ms", "dense_ms", "ours_ms", "ceiling_ms", "path"}


def test_plot(model, times, tmp_path):
    pytest.importorskip("matplotlib")
    found = profile_function(model, X, progress=False)
    found.plot(tmp_path / "profile.png")
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"active: expected one of \(1.0, 0.5, 0.1\), got 0.3"):
        found.plot(tmp_path / "profile.png", active=0.3)


def test_a_real_measurement(model):
    found = profile_function(model, X, active=(0.5,), seconds=0.01, progress=True)
    for row in found.layers:
        assert 0 < row.ours_ms < 1e4
        assert 0 <= row.dgrad_ms <= row.dense_ms
        assert set(row.path.split(" and ")) <= {"packed", "direct", "direct+dx", "dense"}
    assert found.forward_ms > 0
    assert found.backward_ms > 0


def test_interleaved_ways_take_turns():
    turns = []
    ways = {name: lambda i, name=name: turns.append((i, name)) for name in "ab"}
    times = measure.interleave(ways, 0.0, torch.device("cpu"))
    assert set(times) == {"a", "b"}
    assert turns[:2] == [(0, "a"), (0, "b")]  # warming up
    assert turns[2:6] == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]
    assert len(turns) == 2 + 2 * measure.LEAST_ROUNDS


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_shares_must_be_shares(model, share):
    with pytest.raises(ValueError, match=r"active: expected shares in \(0, 1\]"):
        profile_function(model, X, active=(share,))


def test_nothing_to_measure():
    with pytest.raises(ValueError, match="expected Linear or convolution layers that train"):
        profile_function(nn.Sequential(nn.BatchNorm2d(3)), X)
