"""What is kept of every update, and its picture."""

import copy

import pytest
import torch
from equilibrium_net import frozen, make

import neq_kernels as neq
from neq_kernels.equilibrium.epoch import EDGES
from neq_kernels.equilibrium.picture import panels_of

PNG = b"\x89PNG"


def trained(updates=4):
    model, tracker = make(warmup=0)
    for epoch in range(updates):
        report = tracker.update()
        assert len(tracker.history) == epoch + 1
        assert tracker.history[-1].layers == report.layers
        with torch.no_grad():
            model.body.weight[: epoch + 1] += torch.randn(epoch + 1, 3)
    return model, tracker


def test_each_update_is_kept():
    model, tracker = trained()
    assert [epoch.epoch for epoch in tracker.history] == [0, 1, 2, 3]
    last = tracker.history[-1]
    assert last.epsilon == 1e-3
    assert last.velocities.sum() == 15
    assert tracker.history[0].velocities.sum() == 0
    assert last.frozen_share == sum(frozen(model).values()) / 15
    assert 0 < last.share < 1
    names = ("body", "norm", "spare")
    assert last.sets() == {name: neq.get_active(model)[name] for name in names}


def test_the_histogram_counts_what_lies_between_two_edges():
    _, tracker = trained(1)
    report = tracker.update()
    velocities = torch.tensor([0.0, EDGES[0], -EDGES[3], EDGES[3] * 1.01, 99.0]).double()
    sets = {name: neq.ActiveSet.full(5) for name in ("body", "norm", "spare")}
    tracker.history.add(report, sets, [velocities], None)
    counts = tracker.history[-1].velocities
    assert len(counts) == len(EDGES) + 1
    assert {i: int(n) for i, n in enumerate(counts) if n} == {0: 1, 1: 1, 4: 2, len(EDGES): 1}


def test_replay_goes_through_the_same_sets():
    _, tracker = trained(5)
    sets = tracker.history.chosen
    assert len(sets) == 4
    assert len({str([s.count for s in each.values()]) for each in sets}) > 1
    model, other = make(warmup=0, selector=neq.selectors.Replay(sets))
    for update in range(5):
        other.update()
        if update:
            active = neq.get_active(model)
            assert all(active[name] == s for name, s in sets[update - 1].items())


def test_flops_takes_what_was_trained():
    model, tracker = trained()
    trained_sets = tracker.history.trained
    assert len(trained_sets) == 3
    found = neq.flops(model, torch.randn(2, 3), trained_sets)
    shares = [sum(s.size - s.count for s in sets.values()) / 27 for sets in trained_sets]
    assert found.frozen_share == pytest.approx(sum(shares) / 3 * 27 / found.neurons)


def test_numbers_are_noted_beside_the_last_update():
    _, tracker = make()
    with pytest.raises(RuntimeError, match="log: expected an update before it"):
        tracker.log(accuracy=0.5)
    tracker.update()
    tracker.log(accuracy=0.5)
    tracker.log(backward_ms=torch.tensor(3.0))
    assert tracker.history[0].values == {"accuracy": 0.5, "backward_ms": 3.0}
    with pytest.raises(TypeError, match="log: expected a number as loss, got list"):
        tracker.log(accuracy=0.7, loss=[1])
    assert tracker.history[0].values["accuracy"] == 0.5


def test_it_is_saved_with_the_tracker(tmp_path):
    _, tracker = trained()
    tracker.log(accuracy=0.5)
    torch.save(tracker.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    untouched = copy.deepcopy(state["history"])
    _, other = make()
    other.load_state_dict(state)
    assert other.history.chosen == tracker.history.chosen
    for mine, theirs in zip(other.history, tracker.history, strict=True):
        assert (mine.layers, mine.values) == (theirs.layers, theirs.values)
        assert (mine.seconds, mine.share) == (theirs.seconds, theirs.share)
    other.log(accuracy=0.9)
    other.update()
    assert state["history"][-1]["values"] == untouched[-1]["values"] == {"accuracy": 0.5}
    assert len(state["history"]) == 4


def test_the_picture(tmp_path):
    _, tracker = trained()
    for logged in ((), (1, 2), (3,)):
        for epoch in logged:
            tracker.history[epoch].values["accuracy"] = 0.1 * epoch
        tracker.history.plot(tmp_path / "plain.png")
        assert (tmp_path / "plain.png").read_bytes().startswith(PNG)


def test_times_share_a_panel(tmp_path):
    assert panels_of(["backward_ms", "top1", "predicted_ms", "loss"]) == [
        ["top1"], ["loss"], ["backward_ms", "predicted_ms"],
    ]  # fmt: skip
    assert panels_of(["top1"]) == [["top1"]]
    _, tracker = trained()
    for epoch in tracker.history:
        epoch.values.update(backward_ms=2.0, predicted_ms=1.0, top1=0.5)
    tracker.history.plot(tmp_path / "both.png")
    assert (tmp_path / "both.png").read_bytes().startswith(PNG)


def test_no_picture_of_nothing(tmp_path):
    _, tracker = make()
    tracker.update()
    with pytest.raises(ValueError, match="plot: expected an update after training"):
        tracker.history.plot(tmp_path / "none.png")
