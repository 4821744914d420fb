import dataclasses
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neq_kernels as neq
from neq_kernels.equilibrium import Equilibrium
from neq_kernels.equilibrium.selectors import Velocity

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """The head is registered first and runs last; `spare` runs where `use_spare` says so."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 2)
        self.body = nn.Linear(3, 5)
        self.norm = nn.LayerNorm(5)
        self.spare = nn.Linear(5, 5)
        self.use_spare = True

    def forward(self, x):
        x = self.norm(self.body(x))
        if self.use_spare:
            x = self.spare(x)
        return self.head(torch.relu_(x))


def make(model=None, probe=(X,), **arguments):
    torch.manual_seed(0)
    model = neq.convert(Net() if model is None else model)
    return model, Equilibrium(model, list(probe), **arguments)


def rows(report):
    return {row.name: row for row in report.layers}


def frozen(model):
    return {name: active.size - active.count for name, active in neq.get_active(model).items()}


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


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_warmup(warmup):
    """Update t freezes only if t > warmup; nothing changes here, so all is at equilibrium."""
    model, tracker = make(warmup=warmup)
    for epoch in range(6):
        report = tracker.update()
        assert report.epoch == tracker.epoch == epoch
        assert report.warming_up == (0 < epoch <= warmup)
        assert report.frozen == sum(frozen(model).values())
        assert report.frozen == (15 if epoch > warmup else 0)
        assert ("recorded only" in str(report)) == (epoch == 0)


def test_the_first_update_only_records():
    model, tracker = make()
    model.body.set_active([0])
    report = tracker.update()
    assert frozen(model)["body"] == 4
    assert rows(report)["body"].frozen == 4
    assert rows(report)["body"].velocity is None
    tracker.update()
    assert frozen(model)["body"] == 0


def test_conv_and_batch_norm_channels_are_neurons_of_their_own():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(True))
    _, tracker = make(model, [torch.randn(2, 1, 5, 5)], warmup=0)
    tracker.update()
    with torch.no_grad():
        model[1].weight[1] = -1
    tracker.update()
    assert neq.get_active(model)["0"].count == 0
    assert neq.get_active(model)["1"].index.tolist() == [1]


def test_frozen_neurons_thaw():
    model, tracker = make(warmup=0)
    tracker.update(), tracker.update()
    assert frozen(model)["body"] == 5
    with torch.no_grad():
        model.body.weight[2].neg_()
    report = tracker.update()
    assert model.body.active.index.tolist() == [2]
    assert rows(report)["body"].frozen == 4


@pytest.mark.parametrize("inplace", [False, True])
def test_outputs_are_taken_before_the_activation(inplace):
    """A negative pre-activation that flips its sign vanishes behind a ReLU."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(inplace))
    with torch.no_grad():
        model[0].weight.fill_(-1)
    _, tracker = make(model, [torch.ones(2, 1)], exclude=())
    tracker.update()
    with torch.no_grad():
        model[0].weight.fill_(-2)
    assert rows(tracker.update())["0"].velocity == pytest.approx(0, abs=1e-12)
    with torch.no_grad():
        model[0].weight.fill_(3)
    assert rows(tracker.update())["0"].velocity == pytest.approx(2)


def test_a_set_that_stays_does_not_invalidate_a_graph():
    model, tracker = make(warmup=0)
    model.spare.set_active([1])
    tracker.update()
    model.body.set_active([0])  # not what update() chooses
    loss = model(X.clone().requires_grad_()).sum()
    tracker.update()
    tracker.update()
    with pytest.raises(RuntimeError):
        loss.backward()
    loss = model(X.clone().requires_grad_()).sum()
    tracker.update()
    loss.backward()


class Twice(nn.Module):
    """One layer, used a number of times per forward; `shapes` cuts the batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.other = nn.Linear(3, 3)
        self.times, self.cut = 2, None

    def forward(self, x):
        self.other(x)
        for _ in range(self.times):
            x = self.layer(x[: self.cut])
        return x


def test_both_outputs_of_a_layer_used_twice_count():
    def velocity(probe, times):
        torch.manual_seed(0)
        model = Twice()
        model.times = times
        _, tracker = make(model, probe, exclude=())
        tracker.update()
        with torch.no_grad():
            model.layer.weight += 0.5
        return rows(tracker.update())["layer"].velocity

    once, twice = velocity([X], 1), velocity([X], 2)
    assert abs(once - twice) > 1e-3
    assert velocity([X, X], 1) == pytest.approx(once)


STARTS_OVER = "starts over, nothing to compare with yet"
SHAPE = "output shape varies between passes: "
CALLS = "calls vary between passes: "


@pytest.mark.parametrize(
    ("change", "reason", "afterwards"),
    [
        (dict(times=0), "did not run in the probe", STARTS_OVER),
        (dict(times=1), CALLS + "2, then 1", CALLS + "1, then 2"),
        (dict(times=3), CALLS + "2, then 3", CALLS + "3, then 2"),
        (dict(cut=2), SHAPE + "[4, 3], then [2, 3]", SHAPE + "[2, 3], then [4, 3]"),
        (dict(cut=0), "had empty outputs", STARTS_OVER),
    ],
)
def test_what_cannot_be_compared_stays_active_and_starts_over(change, reason, afterwards):
    model, tracker = make(Twice(), exclude=(), warmup=0)
    tracker.update(), tracker.update()
    assert frozen(model) == {"layer": 3, "other": 3}
    vars(model).update(change)
    report = tracker.update()
    assert rows(report)["layer"].reason == reason
    assert f"Active, {reason}: layer" in str(report)
    assert rows(report)["layer"].velocity is None
    assert frozen(model) == {"layer": 0, "other": 3}
    vars(model).update(times=2, cut=None)
    assert rows(tracker.update())["layer"].reason == afterwards
    assert frozen(model)["layer"] == 0
    assert rows(tracker.update())["layer"].reason is None
    assert frozen(model) == {"layer": 3, "other": 3}


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_and_inf_are_named_and_never_frozen(poison):
    model, tracker = make(warmup=0)
    tracker.update(), tracker.update()
    assert frozen(model)["spare"] == 5
    with torch.no_grad():
        model.spare.bias[1] = poison
    with pytest.warns(UserWarning, match="NaN or inf in its outputs: layer 'spare'"):
        report = tracker.update()
    assert rows(report)["spare"].reason == "NaN or inf in its outputs"
    assert frozen(model) == {"head": 0, "body": 5, "norm": 5, "spare": 0}
    with torch.no_grad():
        model.spare.bias[1] = 0
    assert rows(tracker.update())["spare"].reason.startswith("starts over")
    assert frozen(model)["spare"] == 0
    tracker.update()
    assert frozen(model)["spare"] == 5


def test_nan_in_the_first_pass():
    model, tracker = make(warmup=0)
    with torch.no_grad():
        model.body.bias[1] = float("nan")
    with pytest.warns(UserWarning, match="layer 'body' and in 2 more layers, 'norm' next"):
        tracker.update()


def test_overflow_of_a_sum_of_squares_is_not_frozen_either():
    model, tracker = make(
        nn.Sequential(nn.Linear(3, 2).double()), [X.double()], exclude=(), warmup=0
    )
    with torch.no_grad():
        model[0].weight.fill_(1e200)
    tracker.update()
    with pytest.warns(UserWarning, match="layer '0'"):
        tracker.update()
    assert frozen(model) == {"0": 0}


def test_selector_sees_measured_layers_and_decides():
    seen = []

    def freeze_first(scores):
        seen.append(scores)
        return {name: torch.arange(len(s.velocity)) > 0 for name, s in scores.items()}

    model, tracker = make(selector=freeze_first)
    model.use_spare = False
    for _ in range(4):
        tracker.update()
    assert len(seen) == 2
    assert set(seen[0]) == {"body", "norm"}
    assert frozen(model) == {"head": 0, "body": 1, "norm": 1, "spare": 0}
    first, second = (scores["body"] for scores in seen)
    assert (first.parameters, first.kind, first.epoch) == (4, "Linear", 2)
    assert (seen[0]["norm"].parameters, seen[0]["norm"].kind) == (2, "LayerNorm")
    assert first.active.tolist() == [True] * 5
    assert second.active.tolist() == [False] + [True] * 4


def test_a_selector_that_errs_changes_nothing():
    model, tracker = make(selector=lambda scores: {}, warmup=0)
    tracker.update()
    with pytest.raises(ValueError, match="expected masks for exactly"):
        tracker.update()
    assert tracker.epoch == 0
    assert sum(frozen(model).values()) == 0


@dataclasses.dataclass
class Output:
    logits: torch.Tensor


@pytest.mark.parametrize(
    "wrap", [lambda y: {"logits": y}, Output, lambda y: (y, None), lambda y: None]
)
def test_any_output_of_the_model(wrap):
    class Wrapped(Net):
        def forward(self, x, labels=None):
            return wrap(super().forward(x))

    _, tracker = make(Wrapped(), [{"x": X, "labels": X}], warmup=0)
    tracker.update()
    assert tracker.update().frozen == 15


def test_layouts():
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(9, 4))
    make(model, [torch.randn(2, 2, 5)], exclude=())[1].update()
    model = nn.Sequential(nn.Conv2d(2, 3, 2))
    _, tracker = make(model, [torch.randn(2, 3, 3)], warmup=0)
    tracker.update()
    with torch.no_grad():
        model[0].weight[1].neg_()
        model[0].bias[1].neg_()
    tracker.update()
    assert model[0].active.index.tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    _, tracker = make(Net().to(dtype), [X.to(dtype)], warmup=0)
    tracker.update()
    assert tracker.update().frozen == 15
    (output,) = tracker.state_dict()["states"]["body"]["outputs"]
    assert output.dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(momentum=-0.1), r"momentum: expected a number in \[0, 1\), got -0.1"),
        (dict(momentum=1.0), r"momentum: .*got 1.0"),
        (dict(momentum=float("nan")), "momentum: .*got nan"),
        (dict(definition="reference"), "definition: expected one of 'paper', got 'reference'"),
        (dict(warmup=-1), "warmup: expected a whole number of epochs >= 0, got -1"),
        (dict(warmup=1.5), "warmup: .*got 1.5"),
    ],
)
def test_bad_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_momentum_above_the_papers_bound_warns():
    with pytest.warns(
        UserWarning, match="momentum: expected at most 0.5, the paper's bound, got 0.7"
    ) as caught:
        make(momentum=0.7)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(momentum=0.5)


def test_a_model_without_converted_layers():
    with pytest.raises(ValueError, match=r"got Net without any; call neq.convert\(model\) first"):
        Equilibrium(Net(), [X])


def test_a_model_that_was_reverted_or_rebuilt():
    model, tracker = make()
    tracker.update()
    neq.revert(model)
    with pytest.raises(
        RuntimeError, match="layer 'head' to be converted as when the tracker was made"
    ):
        tracker.update()
    model, tracker = make()
    model.body = neq.convert(nn.Linear(3, 5))
    with pytest.raises(RuntimeError, match="layer 'body'"):
        tracker.update()


def test_layers_found_unfit_at_the_first_forward_are_left_alone():
    class Hidden(Net):
        def forward(self, x):
            return self.head(torch.relu(nn.functional.linear(x, self.body.weight)))

    _, tracker = make(Hidden(), warmup=0)
    assert "body" not in rows(tracker.update())
    tracker.update()
    assert tracker.epoch == 1
    assert set(tracker.state_dict()["layers"]) == {"head", "body", "norm", "spare"}


def test_shuffling_is_detected_before_training():
    loader = DataLoader(TensorDataset(torch.randn(40, 3)), batch_size=4, shuffle=True)
    model = neq.convert(Net())
    tracker = Equilibrium(model, loader)
    with pytest.raises(ValueError, match=r"batch 0 differs from the last pass.*no shuffling"):
        tracker.update()
    assert tracker.epoch == 0
    assert tracker.state_dict()["states"] == {}


def test_batches_that_change_later_change_nothing():
    x = X.clone()
    model, tracker = make(probe=[X, x], warmup=0)
    tracker.update()
    x[3, 2] += 1e-6
    with pytest.raises(ValueError, match="batch 1 differs from the last pass"):
        tracker.update()
    assert sum(frozen(model).values()) == 0
    x.copy_(X)
    assert tracker.update().frozen == 15


def test_an_empty_probe():
    _, tracker = make(probe=[])
    with pytest.raises(ValueError, match="expected at least one batch, got none"):
        tracker.update()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
def test_forward_with_a_batch_on_the_wrong_device():
    _, tracker = make(forward=lambda model, batch: model(batch.to("meta")))
    with pytest.raises(Exception) as caught:
        tracker.update()
    assert "raised on batch 0 of the probe: float32 [4, 3] on cpu" in caught.value.__notes__[0]


def test_report_times():
    _, tracker = make()
    assert tracker.update().share is None
    report = tracker.update()
    assert 0 < report.seconds < 60
    assert 0 < report.share <= 1


def test_default_selector():
    _, tracker = make()
    assert isinstance(tracker.selector, Velocity)
    assert tracker.selector.epsilon == 1e-3


def test_a_selector_cannot_spoil_the_scores():
    def spoil(scores):
        masks = {name: s.velocity.abs() >= 1e-3 for name, s in scores.items()}
        for layer in scores.values():
            layer.velocity.fill_(7), layer.similarity.fill_(7), layer.active.fill_(False)
        return masks

    _, tracker = make(selector=spoil, warmup=0)
    tracker.update(), tracker.update()
    assert rows(tracker.update())["body"].velocity == pytest.approx(0, abs=1e-12)
