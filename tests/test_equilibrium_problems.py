"""Layers that cannot be compared, and input that is refused."""

import sys
import warnings

import pytest
import torch
from equilibrium_net import Net, X, frozen, make, rows
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neq_kernels as neq
from neq_kernels.equilibrium import Equilibrium


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(momentum=-0.1), r"momentum: expected a number in \[0, 1\), got -0.1"),
        (dict(momentum=1.0), r"momentum: .*got 1.0"),
        (dict(momentum=float("nan")), "momentum: .*got nan"),
        (dict(definition="talk"), "definition: expected one of 'paper', 'reference', got 'talk'"),
        (dict(warmup=-1), "warmup: expected a whole number of epochs >= 0, got -1"),
        (dict(warmup=1.5), "warmup: .*got 1.5"),
    ],
)
def test_bad_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_momentum_above_the_papers_bound_warns():
    model = neq.convert(Net())
    with pytest.warns(
        UserWarning, match="expected at most 0.5, the paper's bound, got 0.7"
    ) as seen:
        Equilibrium(model, [X], momentum=0.7)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Equilibrium(model, [X], momentum=0.5)


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


def test_augmentation_is_detected_before_training():
    class Augmented(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, place):
            return X[place % 4] * (1 + 0.1 * torch.rand(()))

    model = neq.convert(Net())
    tracker = Equilibrium(model, DataLoader(Augmented(), batch_size=4))
    with pytest.raises(ValueError, match=r"batch 0 differs from the last pass.*no augmentation"):
        tracker.update()
    assert tracker.epoch == 0
    assert sum(frozen(model).values()) == 0


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
