import sys
from collections import UserDict, namedtuple

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from neq_kernels.equilibrium.probe import Probe, describe, digest, move

CPU = torch.device("cpu")
X = torch.arange(12.0).view(6, 2)


class Eager(nn.Module):
    """Keeps what it was called with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, *arguments, **keywords):
        self.calls.append((arguments, keywords))


def run(batches, forward=None, expected=None):
    model = Eager()
    digests = Probe(batches, forward).run(model, CPU, expected)
    return model.calls, digests


@pytest.mark.parametrize(
    ("batch", "arguments", "keywords"),
    [
        (X, (X,), {}),
        ((X, 1), (X,), {}),
        ([X, 1], (X,), {}),
        ({"x": X, "scale": 2}, (), {"x": X, "scale": 2}),
        (UserDict(x=X), (), {"x": X}),
        (({"x": X}, 1), (), {"x": X}),
        (([X, X], 1), ([X, X],), {}),
    ],
)
def test_how_a_batch_reaches_the_model(batch, arguments, keywords):
    calls, digests = run([batch])
    assert len(digests) == 1
    torch.testing.assert_close(calls, [(arguments, keywords)])


def test_forward_gets_the_whole_batch():
    calls, _ = run([(X, 3)], forward=lambda model, batch: model(batch[0], times=batch[1]))
    torch.testing.assert_close(calls, [((X,), {"times": 3})])


def test_loaders_and_datasets():
    data = TensorDataset(X, torch.arange(6))
    assert [len(call[0][0]) for call in run(DataLoader(data, batch_size=4))[0]] == [4, 2]
    assert len(run(data)[0]) == 6


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (iter([X]), r"got a list_iterator, which is exhausted after one pass; pass list\(probe\)"),
        ((x for x in X), "got a generator, which is exhausted"),
        (X, r"got a single Tensor; pass \[probe\]"),
        ({"x": X}, "got a single dict"),
        ("cifar", "got a single str"),
        (3, "got int; pass a DataLoader or a list of batches"),
        (None, "got NoneType"),
    ],
)
def test_what_cannot_be_a_probe(batches, message):
    with pytest.raises(TypeError, match=message):
        Probe(batches)


def test_forward_must_be_callable():
    with pytest.raises(
        TypeError, match=r"forward: expected a callable taking \(model, batch\), got int"
    ):
        Probe([X], forward=3)


def test_empty_probe_and_empty_batch():
    with pytest.raises(ValueError, match="probe: expected at least one batch, got none"):
        run([])
    with pytest.raises(ValueError, match="at least one item"):
        run([()])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([X, X + 1], "batch 1 differs from the last pass.*no shuffling, no augmentation"),
        ([X], "expected 2 batches as in the last pass, got 1; was an iterator exhausted"),
        ([], "expected 2 batches as in the last pass, got 0"),
        ([X, X, X], "batch 2 was not there in the last pass"),
    ],
)
def test_other_batches_than_in_the_last_pass(batches, message):
    _, expected = run([X, X])
    with pytest.raises(ValueError, match=message):
        run(batches, expected=expected)
    with pytest.raises(ValueError, match=message):
        Probe(batches).check_repeatable(expected)
    Probe([X, X]).check_repeatable(expected)


def test_a_batch_that_differs_is_never_fed():
    _, expected = run([X])
    model = Eager()
    with pytest.raises(ValueError, match="batch 0 differs"):
        Probe([X.flip(0)]).run(model, CPU, expected)
    assert model.calls == []


def test_labels_do_not_count_unless_forward_sees_them():
    one, other = [(X, torch.tensor(1))], [(X, torch.tensor(2))]
    assert run(one)[1] == run(other)[1]
    call = lambda model, batch: model(batch)  # noqa: E731
    assert run(one, call)[1] != run(other, call)[1]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
def test_error_of_the_model_says_which_batch():
    def forward(model, batch):
        raise KeyError("boom")

    with pytest.raises(KeyError, match="boom") as caught:
        run([(X, 1)], forward)
    (note,) = caught.value.__notes__
    assert "raised on batch 0 of the probe: tuple of float32 [6, 2], int on cpu" in note
    assert "as it was before update()" in note


DISTINCT = [
    X,
    X.double(),
    X.view(3, 4),
    X + 1e-6,
    X.clone().index_fill_(0, torch.tensor([5]), float("nan")),
    torch.tensor(1.0),
    torch.tensor(1),
    torch.tensor(True),
    torch.empty(0),
    torch.ones(2, dtype=torch.bfloat16),
    torch.ones(2, dtype=torch.complex64),
    [X],
    [X, X],
    {"a": X},
    {"b": X},
    {"a": X, "b": 1},
    numpy.ones(3),
    numpy.ones(3, dtype="int64"),
    "text",
    1.5,
    None,
]


def test_digest_tells_apart():
    digests = [digest(inputs) for inputs in DISTINCT]
    assert len(set(digests)) == len(DISTINCT)


def test_digest_is_of_the_values():
    assert digest([X, {"a": X}]) == digest([X.clone(), {"a": X.t().contiguous().t()}])
    assert digest(X.clone().requires_grad_()) == digest(X)


def test_move_reaches_nested_tensors():
    Pair = namedtuple("Pair", "left right")
    moved = move({"a": [X, (X, 1)], "b": Pair(X, "name")}, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1][0].is_meta
    assert moved["a"][1][1] == 1
    assert isinstance(moved["b"], Pair)
    assert moved["b"].left.is_meta
    assert moved["b"].right == "name"


def test_move_leaves_the_callers_batch_alone():
    class InPlace(UserDict):
        def to(self, device):
            self.data = {key: value.to(device) for key, value in self.data.items()}
            return self

    batch = InPlace(x=X)
    assert move(batch, torch.device("meta"))["x"].is_meta
    assert batch["x"] is X


def test_describe():
    inputs = {"x": X, "rest": [X.int(), "s"]}
    assert describe(inputs) == "{x: float32 [6, 2], rest: list of int32 [6, 2], str}"
