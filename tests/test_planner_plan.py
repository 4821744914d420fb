"""The plan as layers meet it: what is measured, what is known, and what is left to the rule."""

import copy
import pickle
import random
from dataclasses import replace

import pytest
import torch

import neq_kernels as neq
from neq_kernels import autograd, native
from neq_kernels.planner import Geometry, LayerPlan, plan, rule, settled, start, store
from neq_kernels.planner import clock as clocks
from neq_kernels.planner.choice import FUNCTION_MS, MARGIN, MOST_SHAPES, NEAR, Plan

CONV = Geometry(
    "conv", "cpu", torch.float32, 8 * 14 * 14, 128 * 9, 128, 24, kernel=9, shape=(8, 14, 14)
)


@pytest.fixture(autouse=True)
def measuring(monkeypatch, tmp_path):
    monkeypatch.setenv("NEQ_PLAN", "measure")
    monkeypatch.setenv("NEQ_CACHE", str(tmp_path))
    monkeypatch.setattr(rule, "advantage", lambda geometry: 2.0)
    plan.clear()
    yield tmp_path
    plan.clear()


@pytest.fixture
def times(monkeypatch):
    """Milliseconds by path, instead of the clock's."""
    times = {"dense": 2.0, "packed": 1.0, "direct": 3.0, "direct+dx": 3.5}

    def stop(clock):
        clock._report(times[clock.path])

    monkeypatch.setattr(clocks.Clock, "stop", stop)
    return times


def turns(geometry, layer=None, most=50):
    """Run backwards until the decision; the paths taken before it."""
    layer, taken = layer or LayerPlan(), []
    while (turn := start(geometry, layer, ("key",))).why == "measuring":
        taken.append(turn.path)
        turn.stop()
        assert len(taken) < most
    return turn, taken


@pytest.mark.parametrize("faster", ["dense", "packed"])
def test_the_faster_is_taken_from_then_on(times, faster):
    times[faster] = 0.1
    layer = LayerPlan()
    turn, taken = turns(CONV, layer)
    assert (turn.path, turn.why) == (faster, "measured")
    assert {"dense", "packed"} == set(taken)
    assert layer.settled["key",] is turn
    assert settled(CONV).path == faster


def test_those_who_stay_in_the_function_must_be_clearly_faster(times):
    times.update(dense=1 + MARGIN + 0.8 * FUNCTION_MS, packed=1.0)
    assert turns(CONV)[0].path == "dense"
    assert turns(replace(CONV, propagate="active"))[0].path == "packed"
    times.update(dense=1 + MARGIN + 1.2 * FUNCTION_MS)
    assert turns(replace(CONV, fan_in=64 * 9))[0].path == "packed"


def test_one_decision_serves_alike_geometries(times):
    turns(CONV)
    for alike in (
        replace(CONV, count=20),  # the same bucket
        replace(CONV, shape=(8, 14, 15), positions=8 * 14 * 15),
        replace(CONV, count=8),  # packed wins with more rows: with fewer, too
    ):
        assert plan.known(alike) == "packed"
    for other in (
        replace(CONV, count=64),
        replace(CONV, shape=(16, 14, 14)),
        replace(CONV, dtype=torch.bfloat16),
        replace(CONV, channels_last=True),
        replace(CONV, propagate="active"),
        replace(CONV, steps=(2, 2, 1, 1)),
        replace(CONV, needed=(False, True, True)),
        replace(CONV, fan_in=64 * 9),
    ):
        assert plan.known(other) is None


def test_direct_with_many_rows_is_direct_with_fewer_and_packed_need_not_be(times):
    direct = replace(CONV, direct=True)
    turns(direct)
    assert plan.known(direct) == "packed"
    assert plan.known(replace(direct, count=8)) is None
    times["direct"] = 0.1
    other = replace(direct, fan_in=64 * 9)
    turns(other)
    assert plan.known(replace(other, count=8)) == "direct"
    assert plan.known(replace(other, count=64)) is None


def test_dense_with_few_rows_is_dense_with_more(times):
    times["dense"] = 0.5
    turns(CONV)
    assert plan.known(replace(CONV, count=100)) == "dense"
    assert plan.known(replace(CONV, count=8)) is None


def test_threads_and_determinism_are_part_of_a_geometry(times, monkeypatch):
    turns(CONV)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert plan.known(CONV) is None


def test_deterministic_mode_measures_nothing(times):
    torch.use_deterministic_algorithms(True)
    try:
        turn = start(CONV, LayerPlan(), ("key",))
    finally:
        torch.use_deterministic_algorithms(False)
    assert turn.why == "rule"


def test_a_compiler_gets_a_known_answer_or_the_rule(times):
    assert settled(CONV).why == "rule"
    times["dense"] = 0.1
    turns(CONV)
    assert (settled(CONV).path, settled(CONV).why) == ("dense", "measured")


@pytest.mark.parametrize("advantage", [0.01, 100.0])
def test_what_the_rule_is_sure_of_is_not_measured(monkeypatch, advantage):
    monkeypatch.setattr(rule, "advantage", lambda geometry: advantage)
    turn = start(CONV, LayerPlan(), ("key",))
    assert (turn.path, turn.why) == ("packed" if advantage > 1 else "dense", "rule")


def test_a_layer_measures_few_shapes(times):
    layer = LayerPlan()
    ways = [
        start(replace(CONV, shape=(2**n, 14, 14)), layer, (n,)).why for n in range(MOST_SHAPES + 3)
    ]
    assert ways == ["measuring"] * MOST_SHAPES + ["rule"] * 3
    layer.forget()  # another set: the shapes it has measured stay its shapes
    assert start(replace(CONV, shape=(2**9, 14, 14)), layer, ("new",)).why == "rule"
    assert start(replace(CONV, shape=(1, 14, 14), count=8), layer, ("o",)).why == "measuring"


def test_off_leaves_it_to_the_rule(monkeypatch, times, measuring):
    turns(CONV)
    monkeypatch.setenv("NEQ_PLAN", "off")
    assert start(replace(CONV, count=100), LayerPlan(), ("key",)).why == "rule"
    plan.save()
    assert not list(measuring.iterdir())


def test_nonsense_in_the_environment(monkeypatch):
    monkeypatch.setenv("NEQ_PLAN", "sometimes")
    with pytest.raises(ValueError, match="NEQ_PLAN: expected one of measure, off, got 'sometimes'"):
        settled(CONV)


def test_a_new_process_knows_what_the_last_one_measured(times, monkeypatch):
    turns(CONV)
    plan.save()
    plan.clear()
    assert settled(CONV).why == "measured"
    reads = []
    monkeypatch.setattr(store, "read", lambda: reads.append(1) or {})
    for _ in range(5):
        settled(CONV)
    assert not reads, "the file is read once"


def test_another_machines_decisions_are_not_ours(times, monkeypatch):
    turns(CONV)
    plan.save()
    plan.clear()
    monkeypatch.setattr("neq_kernels.planner.choice._processor", lambda: "another")
    assert plan.known(CONV) is None


def test_nothing_is_written_without_a_new_decision(times, monkeypatch):
    turns(CONV)
    plan.save()
    monkeypatch.setattr(store, "write", lambda *a: pytest.fail("written again"))
    turns(CONV)
    plan.save()


def test_state_travels(times):
    turns(CONV)
    state = plan.state_dict()
    plan.clear()
    other = Plan()
    other.load_state_dict({**state, "not a geometry": "dense", "x count=y": "dense"})
    assert other.known(CONV) == "packed"


def conv_layer(count=24):
    torch.manual_seed(0)
    layer = neq.convert(torch.nn.Conv2d(16, 64, 3, padding=1))
    layer.set_active(list(range(count)))
    return layer


def backward(layer, x):
    layer.zero_grad()
    layer(x).square().sum().backward()
    return layer.weight.grad.clone(), layer.bias.grad.clone(), layer._plan.path, layer._plan.why


@pytest.mark.parametrize("faster", ["dense", "packed", "direct"])
def test_layers_get_the_same_gradients_in_every_turn(times, faster):
    times[faster] = 0.5 * min(times.values())
    layer, x = conv_layer(), torch.randn(2, 16, 8, 8, requires_grad=True)
    seen = [backward(layer, x) for _ in range(20)]
    for weight, bias, _, _ in seen:
        torch.testing.assert_close(weight, seen[0][0], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(bias, seen[0][1], rtol=1e-4, atol=1e-3)
        assert not weight[24:].any()
        assert not bias[24:].any()
    ways = {"dense", "packed", *(["direct"] if native.available() else [])}
    faster = faster if faster in ways else "packed"
    assert [why for *_, why in seen[:4]] == ["measuring"] * 4
    assert seen[-1][2:] == (faster, "measured")
    assert {path for *_, path, _ in seen} == ways
    word = "dense, frozen rows zeroed" if faster == "dense" else faster
    path = neq.report(torch.nn.Sequential(layer)).layers[0].path
    assert path.startswith(word)
    assert path.endswith("faster here as measured")


def test_200_sizes_are_not_measured_each(times):
    layer, draw = conv_layer(), random.Random(0)
    measured = 0
    for _ in range(200):
        x = torch.randn(1, 16, draw.randrange(3, 120), draw.randrange(3, 120))
        measured += backward(layer, x)[3] == "measuring"
    assert measured <= MOST_SHAPES * 2 * 9


def test_a_copy_and_a_pickle_of_a_layer_start_over(times):
    times["dense"] = 0.1
    layer, x = conv_layer(), torch.randn(2, 16, 8, 8)
    for _ in range(20):
        backward(layer, x)
    assert layer._plan.dense
    assert layer._plan.zeroing
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin._plan == LayerPlan()
        twin.set_active([60])
        weight = backward(twin, x)[0]
        assert weight[60].any()
        assert not weight[:60].any()


def test_a_changed_set_is_noticed_on_torchs_own_path(times):
    times["dense"] = 0.1
    layer, x = conv_layer(), torch.randn(2, 16, 8, 8)
    for _ in range(20):
        backward(layer, x)
    y = layer(x)
    assert "Convolution" in type(y.grad_fn).__name__, "torch's own backward"
    layer.set_active([3])
    with pytest.raises(RuntimeError, match="expected the active set that the forward saw"):
        y.sum().backward()


def test_what_a_layer_propagates_is_part_of_what_it_knows(times):
    times["dense"] = 0.1
    layer, x = conv_layer(), torch.randn(2, 16, 8, 8, requires_grad=True)
    for _ in range(20):
        backward(layer, x)
    layer.propagate = "active"
    x.grad = None
    backward(layer, x)
    masked = x.grad.clone()
    layer.propagate, x.grad = "all", None
    backward(layer, x)
    assert not torch.allclose(masked, x.grad)


def test_a_real_race_ends():
    layer, x = conv_layer(), torch.randn(2, 16, 8, 8)
    seen = [backward(layer, x)[3] for _ in range(30)]
    assert seen[-1] == "measured"


def test_the_plan_travels_with_the_trackers_state(times):
    def tracker():
        model = neq.convert(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)))
        return neq.Equilibrium(model, [torch.randn(2, 4)])

    turns(CONV)
    state = tracker().state_dict()
    plan.clear()
    assert plan.known(CONV) is None
    tracker().load_state_dict(state)
    assert plan.known(CONV) == "packed"


def test_where_nothing_was_measured_the_nearest_sizes_decide(times, monkeypatch):
    monkeypatch.setattr(rule, "choose", lambda geometry: "dense")
    times.update(dense=2.0, packed=1.0)
    turns(CONV)
    times.update(dense=0.1)
    turns(replace(CONV, shape=(8, 60, 60)))
    full = LayerPlan(shapes={str(n) for n in range(MOST_SHAPES)})

    def start_at(*shape, **others):
        turn = start(replace(CONV, shape=shape, **others), full, (shape, *others))
        return turn.path, turn.why

    assert start_at(8, 18, 18) == ("packed", "near")
    assert start_at(8, 48, 48) == ("dense", "near")
    assert start_at(8, 18, 18, count=16) == ("packed", "near")  # fewer never need dense
    far = round(14 * 1.25 ** (-NEAR - 2))
    assert start_at(1, far, 14) == ("dense", "rule")
    assert start_at(8, 18, 18, fan_in=64) == ("dense", "rule")
    assert start_at(8, 18) == ("dense", "rule")
    state = plan.state_dict()
    plan.clear()
    plan.load_state_dict(state)
    assert start_at(8, 18, 19) == ("packed", "near")
    plan.clear()
    assert start_at(8, 19, 19) == ("dense", "rule")


def test_what_the_nearest_decided_must_be_possible_here(times, monkeypatch):
    times.update(direct=0.1)
    turns(replace(CONV, direct=True))
    assert plan.near(replace(CONV, direct=True, shape=(8, 18, 18))) == "direct"
    full = LayerPlan(shapes={str(n) for n in range(MOST_SHAPES)})
    monkeypatch.setattr(plan, "near", lambda geometry: "direct")
    assert start(replace(CONV, shape=(8, 18, 18)), full, ("key",)).why == "rule"


def test_sizes_that_are_none_do_no_harm(times):
    turns(CONV)
    state = plan.state_dict()
    (name,) = state
    plan.clear()
    broken = {
        name.replace("1.25^", f"1.25^{sizes}"): path
        for sizes in ("--", "x", "")
        for path in state.values()
    }
    plan.load_state_dict(broken)
    assert plan.near(replace(CONV, shape=(8, 18, 18))) == "packed"


def test_of_several_near_sizes_the_nearest_decide(times):
    turns(CONV)
    times["dense"] = 0.1
    turns(replace(CONV, shape=(8, 22, 22)))
    assert plan.near(replace(CONV, shape=(8, 15, 18))) == "packed"
    assert plan.near(replace(CONV, shape=(8, 18, 21))) == "dense"


def test_sizes_of_one_scale_are_known_at_once(times, monkeypatch):
    times["dense"] = 0.1
    layer = conv_layer()
    for _ in range(20):
        backward(layer, torch.randn(2, 16, 32, 32, requires_grad=True))
    monkeypatch.setattr(autograd.planner, "start", lambda *a: pytest.fail("asked anew"))
    x = torch.randn(2, 16, 34, 34, requires_grad=True)
    assert layer(x).grad_fn.name() == "ConvolutionBackward0"


def test_a_backward_of_a_known_scale_asks_nothing(times, monkeypatch):
    times["packed"] = 0.1
    layer = conv_layer()
    for _ in range(20):
        backward(layer, torch.randn(2, 16, 32, 32))
    monkeypatch.setattr(autograd.planner, "start", lambda *a: pytest.fail("asked anew"))
    backward(layer, torch.randn(2, 16, 34, 34))
    layer._plan.why = "near"
    assert "faster at the nearest sizes measured" in str(neq.report(layer))
