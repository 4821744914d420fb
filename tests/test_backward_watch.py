"""The backward's time as a tracker takes it, and what TimeBudget makes of it."""

import copy
import gc
import io

import pytest
import torch
from test_time_budget import chain, scores
from torch import nn

import neq_kernels as neq
from neq_kernels.equilibrium import Equilibrium
from neq_kernels.equilibrium.selectors import TimeBudget
from neq_kernels.equilibrium.selectors.cost import BackwardCost
from neq_kernels.equilibrium.watch import MOST, SKIPPED, BackwardWatch

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Clock:
    """Stands still but where the network's backward moves it on."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def slow(clock, seconds):
    """A network whose backward takes so many seconds in its first layer, as does its loss."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))

    def wait(gradient):
        clock.seconds += seconds[0]

    def watched(module, inputs, output):
        if output.requires_grad:
            output.register_hook(wait)

    net[0].register_forward_hook(watched)

    def step(model=net):
        output = model(X)
        loss = output.sum() * 1
        loss.register_hook(lambda gradient: setattr(clock, "seconds", clock.seconds + 100))
        loss.backward()

    return net, step


def test_the_median_of_the_models_own_backward_without_the_first_steps():
    clock, seconds = Clock(), [9.0]
    net, step = slow(clock, seconds)
    watch = BackwardWatch(net, clock)
    assert watch.milliseconds() is None
    for _ in range(SKIPPED):
        step()
    assert watch.milliseconds() is None
    for taken in (2.0, 3.0, 7.0):
        seconds[0] = taken
        step()
    assert watch.milliseconds() == 3000
    watch.restart()
    assert watch.milliseconds() is None


def test_no_more_steps_than_needed():
    clock = Clock()
    net, step = slow(clock, [1.0])
    watch = BackwardWatch(net, clock)
    for _ in range(SKIPPED + MOST + 10):
        step()
    assert len(watch._spans) == MOST


def test_evaluation_and_what_has_no_backward_do_not_count():
    clock, seconds = Clock(), [5.0]
    net, step = slow(clock, seconds)
    watch = BackwardWatch(net, clock)
    for _ in range(SKIPPED):
        step()
    net.eval()
    step()
    net.train()
    with torch.no_grad():
        net(X)
    net(X)  # a forward without a backward
    assert watch.milliseconds() is None
    step()
    assert watch.milliseconds() == 5000


def test_a_backward_that_raises_is_forgotten():
    clock, seconds = Clock(), [1.0]
    net, step = slow(clock, seconds)
    watch = BackwardWatch(net, clock)
    for _ in range(SKIPPED):
        step()

    def fail(gradient):
        raise RuntimeError("boom")

    handle = net[1].register_forward_hook(
        lambda module, inputs, output: inputs[0].register_hook(fail) and None
    )
    with pytest.raises(RuntimeError, match="boom"):
        step()
    handle.remove()
    clock.seconds += 50
    step()
    assert watch.milliseconds() == 1000


def test_a_compiled_model_is_timed_too():
    clock = Clock()
    net = nn.Sequential(nn.Linear(3, 2))
    compiled = torch.compile(net, backend="eager")
    watch = BackwardWatch(compiled)
    for _ in range(SKIPPED + 2):
        compiled(X).sum().backward()
    assert len(watch._spans) == 2
    assert clock.seconds == 0


def test_it_leaves_with_its_tracker_and_stays_out_of_copies():
    clock = Clock()
    net, step = slow(clock, [1.0])
    hooks = len(net._forward_hooks)
    watch = BackwardWatch(net, clock)
    plain = nn.Linear(3, 2)
    other = BackwardWatch(plain, clock)
    torch.save(plain, io.BytesIO())
    copied = copy.deepcopy(plain)
    for _ in range(SKIPPED + 1):
        copied(X).sum().backward()
    assert other.milliseconds() is None
    del watch
    gc.collect()
    assert len(net._forward_hooks) == hooks
    step()


def test_what_training_shows_corrects_the_cost():
    cost = BackwardCost(chain())
    none = cost.cuts[0]
    assert (cost.dense_ms, cost.ms({}, none), cost.ms({"conv1": 0}, none)) == (36, 36, 30)
    cost.saw_dense(42.0)  # 6 ms more of norms and the like
    assert (cost.ms({}, none), cost.ms({"conv1": 0}, none)) == (42, 36)
    cost.saw(36.0, 39.0)  # half of what was promised
    assert cost.gain == 0.5
    assert cost.ms({}, none) == 42
    assert cost.ms({"conv1": 0}, none) == 39
    cost.saw(39.0, 36.0)  # now all of it: half the way
    assert cost.gain == 0.75
    cost.saw(41.9, 100.0)  # too little to learn from
    assert cost.gain == 0.75


def test_the_next_choice_keeps_the_wanted_speed_up():
    """Where freezing saves half of what the profile promises, about twice as much is frozen."""
    found = scores(conv0=[0.4] * 4, norm0=[0.1] * 4, conv1=[1.0] * 4, conv2=[0.9] * 4)
    budget = TimeBudget(1.2, chain())
    budget.measured(36.0)
    first = {name: int(mask.sum()) for name, mask in budget(found).items()}
    budget.measured(36 - (36 - budget.prediction.ms) / 2)
    second = {name: int(mask.sum()) for name, mask in budget(found).items()}
    assert sum(second.values()) < sum(first.values())
    assert budget.prediction.ms <= 36 / 1.2 + 1e-6
    deaf = TimeBudget(1.2, chain(), calibrate=False)
    deaf.measured(99.0)
    assert {name: int(mask.sum()) for name, mask in deaf(found).items()} == first


def test_out_of_reach_is_as_near_as_can_be_once_training():
    found = scores(conv0=[0.4] * 4, norm0=[0.1] * 4, conv1=[1.0] * 4, conv2=[0.9] * 4)
    budget = TimeBudget(30, chain())
    budget.measured(36.0)
    budget(found)
    budget.measured(20.0)
    assert not any(mask.any() for mask in budget(found).values())
    assert 1 < budget.prediction.speedup < 30


def test_a_resumed_run_goes_on_with_what_was_learnt():
    found = scores(conv0=[0.4] * 4, norm0=[0.1] * 4, conv1=[1.0] * 4, conv2=[0.9] * 4)
    saved, other = TimeBudget(1.5, chain()), TimeBudget(1.5, chain())
    saved.measured(40.0)
    saved(found)
    saved.measured(33.0)
    other.load_state_dict(saved.state_dict())
    saved.measured(34.0), other.measured(34.0)
    saved(found), other(found)
    assert other.prediction == saved.prediction


def trained(log=None):
    torch.manual_seed(0)
    model = neq.convert(nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                                      nn.Linear(16, 2)))  # fmt: skip
    profile = neq.profile(model, X, seconds=0.01, progress=False)
    tracker = Equilibrium(model, [X], selector=TimeBudget(1.01, profile))
    tracker.update()
    reports = []
    for _ in range(2):
        for _ in range(SKIPPED + 2):
            model(X).sum().backward()
        if log:
            tracker.log(backward_ms=log)
        reports.append(tracker.update())
    return tracker, reports


def test_reports_and_history_have_both_times():
    tracker, (first, second) = trained()
    assert "measured" in first.note.splitlines()[0]
    assert "all neurons active" in first.note.splitlines()[0]
    assert second.note.splitlines()[0].startswith("backward of the last epoch: predicted ")
    assert second.note.splitlines()[1] == str(tracker.selector.prediction)
    assert second.note in str(second)
    values = [set(epoch.values) for epoch in tracker.history]
    assert values == [{"backward_ms"}, {"backward_ms", "predicted_ms"}, {"predicted_ms"}]
    assert tracker.history[0].values["backward_ms"] > 0


def test_what_the_user_measures_counts():
    tracker, _ = trained(log=7.0)
    assert [epoch.values.get("backward_ms") for epoch in tracker.history] == [7.0, 7.0, None]


def test_other_selectors_are_not_timed():
    model = neq.convert(nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 2)))
    hooks = len(model._forward_hooks)
    tracker = Equilibrium(model, [X])
    assert len(model._forward_hooks) == hooks
    tracker.update()
    assert tracker.update().note == ""
