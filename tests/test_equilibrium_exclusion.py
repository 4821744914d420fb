"""Which layers are left out."""

import pytest
from equilibrium_net import Net, X, frozen, make, rows
from torch import nn

import neq_kernels as neq
from neq_kernels.equilibrium import Equilibrium


def test_default_excludes_the_linear_that_runs_last():
    model, tracker = make()
    report = tracker.update()
    assert list(rows(report)) == ["body", "norm", "spare"]
    assert (report.excluded, report.head) == (("head",), "head")
    assert "Not measured: head (the last Linear)" in str(report)
    tracker.update(), tracker.update()
    assert frozen(model) == {"head": 0, "body": 5, "norm": 5, "spare": 5}


def test_a_head_that_was_not_converted_excludes_no_other():
    model = neq.convert(Net(), exclude="head")
    report = Equilibrium(model, [X]).update()
    assert list(rows(report)) == ["body", "norm", "spare"]
    assert (report.excluded, report.head) == ((), None)


@pytest.mark.parametrize(
    ("exclude", "measured"),
    [
        ((), ["head", "body", "norm", "spare"]),
        ("head", ["body", "norm", "spare"]),
        (["*d*", "norm"], ["spare"]),
    ],
)
def test_exclusion_by_name(exclude, measured):
    model, tracker = make(exclude=exclude)
    model.head.set_active([1])
    for _ in range(3):
        report = tracker.update()
    assert list(rows(report)) == measured
    assert set(report.excluded) == {"head", "body", "norm", "spare"} - set(measured)
    assert report.head is None
    assert frozen(model)["head"] == (2 if "head" in measured else 1)


def test_excluded_layers_are_not_recorded():
    model, tracker = make(exclude=["norm"])
    hooks = []
    model.norm.register_forward_pre_hook(lambda m, x: hooks.append(len(m._forward_hooks)))
    model.body.register_forward_pre_hook(lambda m, x: hooks.append(len(m._forward_hooks)))
    tracker.update(), tracker.update()
    body, norm = hooks[-2:]
    assert body == 1
    assert norm == 0


@pytest.mark.parametrize(
    ("exclude", "error", "message"),
    [
        ("haed", ValueError, "exclude: expected a pattern that matches a module, got 'haed'"),
        ("*", ValueError, "a converted layer left to measure, got all excluded: head, body"),
        ([3], TypeError, "exclude: expected name patterns, got int"),
    ],
)
def test_bad_exclusion(exclude, error, message):
    with pytest.raises(error, match=message):
        make(exclude=exclude)


def test_nothing_left_but_the_head():
    _, tracker = make(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match=r"got all excluded: 0; pass exclude=\(\)"):
        tracker.update()
    assert tracker.epoch == 0
