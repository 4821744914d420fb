"""Wrong arguments: the message names the argument, and nothing has changed."""

import pytest
import torch
from torch import nn

import neq_kernels as neq


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = neq.convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    neq.set_active(model, {"0": [1, 3], "2": [0]})
    return model


def lists(model):
    return [(m._index.clone(), m._count.clone(), m._mask.clone()) for m in (model[0], model[2])]


def assert_unchanged(model, before):
    assert model[0].active == neq.ActiveSet.from_index([1, 3], 4)
    assert model[2].active == neq.ActiveSet.from_index([0], 2)
    for now, then in zip(lists(model), before, strict=True):
        for mine, other in zip(now, then, strict=True):
            assert torch.equal(mine, other)


WRONG_SETS = {
    "out of range": ([4], IndexError, r"\[0, 4\), got 4"),
    "far out of range": (torch.tensor([0, 2**40]), IndexError, r"\[0, 4\), got 1099511627776"),
    "negative": ([0, -1], IndexError, r"\[0, 4\), got -1"),
    "repeated": ([2, 1, 2], ValueError, r"channel 2 repeatedly; pass index\.unique\(\)"),
    "float": (torch.tensor([0.0, 1.0]), TypeError, r"integers, got torch\.float32"),
    "list of floats": ([0.0, 1.0], TypeError, r"integers, got torch\.float"),
    "float mask": (torch.ones(4), TypeError, r"integers, got torch\.float32.*from_mask"),
    "short mask": (torch.ones(3, dtype=torch.bool), ValueError, r"expected 4 neurons.*got 3"),
    "long mask": ([True] * 5, ValueError, r"expected 4 neurons.*got 5"),
    "two dimensions": (torch.ones(2, 2, dtype=torch.bool), ValueError, r"shape \(2, 2\)"),
    "no dimension": (torch.tensor(1), ValueError, r"one dimension.*shape \(\)"),
    "set of another size": (neq.ActiveSet.full(5), ValueError, r"expected 4 neurons.*got 5"),
    "complex": (torch.zeros(2, dtype=torch.complex64), TypeError, r"integers, got torch\.complex"),
    "other device": (torch.zeros(2, dtype=torch.int64, device="meta"), ValueError, r"on the cpu"),
    "number": (1, TypeError, r"active"),
    "name": ("all", TypeError, r"active|index"),
    "nested list": ([[0], [1]], ValueError, r"one dimension"),
    "mixed list": ([True, 2, 3, 0], (TypeError, ValueError), r"active|mask|index"),
}


@pytest.mark.parametrize(("chosen", "error", "message"), WRONG_SETS.values(), ids=WRONG_SETS)
def test_a_wrong_set_for_a_layer(model, chosen, error, message):
    before = lists(model)
    with pytest.raises(error, match=message):
        model[0].set_active(chosen)
    assert_unchanged(model, before)


@pytest.mark.parametrize(("chosen", "error", "message"), WRONG_SETS.values(), ids=WRONG_SETS)
def test_a_wrong_set_for_one_of_several_layers_changes_none(model, chosen, error, message):
    before = lists(model)
    with pytest.raises(error, match=message) as caught:
        neq.set_active(model, {"2": [1], "0": chosen})
    assert "layer '0'" in str(caught.value)
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", ["1", "nowhere", "", "0.weight"])
def test_a_name_that_is_no_converted_layer(model, name):
    before = lists(model)
    with pytest.raises(KeyError, match=rf"expected names of converted layers, got '{name}'"):
        neq.set_active(model, {"0": [0], name: [0]})
    assert_unchanged(model, before)


@pytest.mark.parametrize("names", [[0], "0", None], ids=str)
def test_sets_that_are_no_mapping(model, names):
    before = lists(model)
    with pytest.raises(TypeError, match=r"active: expected"):
        neq.set_active(model, names)
    assert_unchanged(model, before)


def test_sets_for_a_model_that_was_not_converted():
    with pytest.raises(KeyError, match=r"converted model.*neq_kernels\.convert\(model\) first"):
        neq.set_active(nn.Sequential(nn.Linear(3, 4)), {"0": [0]})


@pytest.mark.parametrize(
    "wrong",
    [None, {}, lambda x: x, nn.Linear(2, 2).state_dict(), nn.Linear],
    ids=lambda w: str(type(w)),
)
def test_converting_what_is_no_module(wrong):
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got"):
        neq.convert(wrong)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"propagate": "some"}, ValueError, r"propagate: expected one of all, active, got 'some'"),
        ({"propagate": True}, ValueError, r"propagate: expected one of all, active, got True"),
        ({"exclude": "head*"}, ValueError, r"exclude: .*'head\*' matches none"),
        ({"exclude": ["0", "heads"]}, ValueError, r"exclude: .*'heads' matches none"),
        ({"exclude": [nn.Linear]}, TypeError, r"exclude: expected"),
    ],
)
def test_wrong_arguments_of_convert(arguments, error, message):
    plain = nn.Sequential(nn.Linear(3, 4))
    hooks = dict(plain._forward_hooks)
    with pytest.raises(error, match=message):
        neq.convert(plain, **arguments)
    assert type(plain[0]) is nn.Linear
    assert dict(plain._forward_hooks) == hooks
    assert not {key for key in plain.__dict__ if "neq" in key}


def test_wrong_arguments_of_convert_leave_a_converted_model_alone(model):
    before = lists(model)
    with pytest.raises(ValueError, match=r"propagate"):
        neq.convert(model, propagate="some")
    with pytest.raises(ValueError, match=r"propagate: .*got 'most'"):
        model[0].propagate = "most"
    assert [model[0].propagate, model[2].propagate] == ["all", "all"]
    assert_unchanged(model, before)


def test_choosing_the_same_set_again_is_no_change():
    layer = neq.convert(nn.Linear(3, 4))
    layer.set_active([1, 3])
    loss = layer(torch.randn(2, 3)).sum()
    layer.set_active([3, 1])
    loss.backward()
    assert layer.bias.grad.tolist() == [0, 2, 0, 2]


def test_converting_twice_is_harmless(model):
    before = lists(model)
    hooks = len(model._forward_hooks), len(model._forward_pre_hooks)
    assert neq.convert(model) is model
    assert (len(model._forward_hooks), len(model._forward_pre_hooks)) == hooks
    assert_unchanged(model, before)


@pytest.mark.parametrize("changed", [[0], [], None], ids=["some", "none", "all"])
@pytest.mark.parametrize("propagate", ["all", "active"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(3, 4), (2, 3)),
        (lambda: nn.Conv2d(3, 4, 1), (2, 3, 5, 5)),
        (lambda: nn.BatchNorm1d(4), (3, 4)),
        (lambda: nn.LayerNorm(4), (3, 4)),
    ],
    ids=["Linear", "Conv2d", "BatchNorm1d", "LayerNorm"],
)
def test_backward_after_the_set_was_changed(make, shape, propagate, changed):
    layer = neq.convert(make(), propagate=propagate)
    layer.set_active([1, 3])
    x = torch.randn(shape, requires_grad=True)
    loss = layer(x).square().sum()
    layer.set_active(changed)
    with pytest.raises(RuntimeError, match=r"active set that the forward saw.*run the forward"):
        loss.backward()
    assert all(p.grad is None for p in layer.parameters())
    layer.set_active([0])
    layer(x).square().sum().backward()
    assert layer.weight.grad[0].any()
