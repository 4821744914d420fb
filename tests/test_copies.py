"""Copies, files, other dtypes and the meta device: the set and the weights stay whole."""

import copy
import io
import pickle

import pytest
import torch
from kinds import (
    assert_frozen_rows_zero,
    assert_same,
    converted,
    each_kind,
    grads,
    net,
)
from torch import nn

import neq_kernels as neq

pytestmark = pytest.mark.usefixtures("one_thread")


@each_kind
def test_converting_in_inference_mode(case):
    plain = case.layer()
    with torch.inference_mode():
        layer = neq.convert(plain)
    layer.set_active([0])
    layer(case.x()).sum().backward()
    assert_frozen_rows_zero(layer)


@each_kind
@pytest.mark.parametrize("index", [(1, 4), (), range(9)], ids=["some", "none", "more"])
def test_copies_keep_the_set_and_are_independent(case, index):
    layer = converted(case, index, "active")
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(buffer, weights_only=False),
    ]
    for other in copies:
        assert type(other) is type(layer)
        assert other.active == layer.active
        assert other.propagate == "active"
        other.set_active([2])
        other(case.x()).sum().backward()
        assert_frozen_rows_zero(other)
    assert layer.active.index.tolist() == list(index)


def test_state_dict_is_torchs(tmp_path):
    model = net()
    plain = neq.revert(copy.deepcopy(model))
    assert list(model.state_dict()) == list(plain.state_dict())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    plain.load_state_dict(state, strict=True)
    with torch.no_grad():
        plain[0].weight.add_(1)
    model.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(model[0].weight, plain[0].weight)
    assert model[0].active.index.tolist() == [1, 4]


@each_kind
def test_loading_by_assignment_into_a_model_on_meta(case):
    state = case.layer().state_dict()
    with torch.device("meta"):
        layer = neq.convert(case.make())
    layer.set_active([1, 4])
    layer.load_state_dict(state, assign=True)
    layer(case.x()).sum().backward()
    assert_frozen_rows_zero(layer)


@each_kind
def test_to_meta_and_back(case):
    layer = converted(case)
    layer.to("meta")
    layer.to_empty(device="cpu")
    layer.load_state_dict(case.layer().state_dict())
    assert layer.active.index.tolist() == [1, 4]
    expected = converted(case)
    for model in (layer, expected):
        model(case.x()).square().sum().backward()
    assert_same(grads(layer), grads(expected))


@each_kind
@pytest.mark.parametrize("change", ["half", "double", "bfloat16"])
def test_change_of_dtype(case, change):
    layer = converted(case)
    getattr(layer, change)()
    x = case.x(layer.weight.dtype)
    layer(x).sum().backward()
    assert layer.weight.grad.dtype == x.grad.dtype == layer.weight.dtype
    assert layer.active.index.tolist() == [1, 4]
    assert_frozen_rows_zero(layer)


def test_parameters_that_are_views_of_one_flat_tensor():
    layer, plain = neq.convert(nn.Linear(3, 4)), nn.Linear(3, 4)
    flat = torch.randn(16)
    for model in (layer, plain):
        model.weight.data, model.bias.data = flat[:12].view(4, 3), flat[12:]
    layer.set_active([2])
    x = torch.randn(5, 3)
    for model in (layer, plain):
        model(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad[2], plain.weight.grad[2])
    assert_frozen_rows_zero(layer)
