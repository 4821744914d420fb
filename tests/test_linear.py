"""Linear and transformers' Conv1D: every input, every set, every path."""

import copy

import pytest
import torch
from cases import (
    LINEAR,
    SETS,
    Case,
    assert_exact,
    by_name,
    chosen,
    conv1d_columns,
    gradients,
    ids,
    inside,
    randn,
    size_of,
    skip_unserved,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import neq_kernels as neq
from neq_kernels import native, reference_conv

pytestmark = pytest.mark.usefixtures("poison", "one_thread", "device")

COLUMNS = [conv1d_columns(by_name(LINEAR, name)) for name in ("matrix", "tokens", "blocks")]
EVERY = LINEAR + COLUMNS
TOKENS = by_name(LINEAR, "tokens")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(params=["packed", "direct", "direct+dx", "dense"])
def path(request, force_path):
    """One way more than other layers have."""
    return force_path(request.param)


def check(case, index, propagate="all", dtype=torch.float32, x=None, dy=None):
    skip_unserved(dtype)
    plain = case.layer(dtype)
    x = case.x(dtype) if x is None else x
    y = plain(x)
    dy = randn(y.shape, dtype, seed=3) if dy is None else dy
    layer = inside(copy.deepcopy(plain), propagate)
    layer.set_active(index)
    assert torch.equal(layer(x), y), "the forward differs from torch's"
    cut = propagate == "active" and not index
    if cut:
        assert not layer(x).requires_grad
        return layer, None
    found = gradients(layer, x, dy)
    assert_exact(plain, x, dy, index, propagate, found)
    return layer, found


@pytest.mark.parametrize("case", EVERY, ids=ids(EVERY))
@pytest.mark.parametrize("propagate", ["all", "active"])
def test_gradients_of_every_set(case, propagate, backend, path):
    for name in SETS:
        check(case, chosen(name, size_of(case.layer())), propagate)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("propagate", ["all", "active"])
@pytest.mark.parametrize("case", [EVERY[7], EVERY[-1]], ids=lambda case: case.name)
def test_every_dtype(case, dtype, propagate, backend, path):
    for name in ("one", "odd"):
        check(case, chosen(name, 37), propagate, dtype)


@pytest.mark.parametrize("propagate", ["all", "active"])
@pytest.mark.parametrize("case", [TOKENS, COLUMNS[1]], ids=lambda case: case.name)
def test_layouts_of_x_and_dy(case, propagate, backend, path):
    shape, output = case.input, (*case.input[:-1], 11)
    plain = randn(shape, torch.float32, 5)
    dy = randn(output, torch.float32, 6)
    xs = [plain, randn((*output[:-1], 10), torch.float32, 5)[..., ::2]]
    if case is TOKENS:  # Conv1D itself views its input and refuses these.
        xs += [
            randn((5, 3, 2), torch.float32, 5).permute(2, 1, 0),
            randn((3, 2, 5), torch.float32, 5).transpose(0, 1),
            plain[:1].expand(shape),
        ]
    dys = [
        dy,
        dy.transpose(0, 1).contiguous().transpose(0, 1),
        randn((11, 3, 2), torch.float32, 6).permute(2, 1, 0),
        randn((2, 3, 22), torch.float32, 6)[..., 1::2],
        dy[:, :1].expand(output),
        torch.ones(()).expand(output),
    ]
    for x in xs:
        for given_dy in dys:
            check(case, [1, 4, 10], propagate, x=x.requires_grad_(), dy=given_dy)


def test_sum_of_the_output(backend):
    layer = neq.convert(TOKENS.layer())
    layer.set_active([2, 3])
    x = TOKENS.x()
    layer(x).sum().backward()
    assert_exact(
        TOKENS.layer(), x, torch.ones(2, 3, 11), [2, 3], "all",
        {"x": x.grad, "weight": layer.weight.grad, "bias": layer.bias.grad},
    )  # fmt: skip


@pytest.mark.parametrize("propagate", ["all", "active"])
@pytest.mark.parametrize("wanted", range(8))
def test_only_what_is_asked_for(wanted, propagate, path):
    wants = {"x": wanted & 1, "weight": wanted & 2, "bias": wanted & 4}
    for index in ([0, 3, 4], [], list(range(11))):
        layer = inside(TOKENS.layer(), propagate)
        plain = TOKENS.layer()
        for model in (layer, plain):
            model.weight.requires_grad_(bool(wants["weight"]))
            model.bias.requires_grad_(bool(wants["bias"]))
        layer.set_active(index)
        x = TOKENS.x().detach().requires_grad_(bool(wants["x"]))
        y = layer(x)
        asked = wanted if index else wanted & 1 and propagate == "all"
        assert y.requires_grad == bool(asked)
        if asked:
            dy = randn(y.shape, torch.float32, 3)
            assert_exact(plain, x, dy, index, propagate, gradients(layer, x, dy))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("case", [by_name(LINEAR, "blocks"), COLUMNS[2]], ids=lambda c: c.name)
def test_not_a_number_stays_in_its_own_rows(bad, case, backend, path):
    index = [1, 20, 36]
    x = case.x()
    with torch.no_grad():
        x[0, 0] = bad
    dy = randn((6, 37), torch.float32, 3)
    dy[0, 20], dy[1, 5] = bad, bad
    layer = neq.convert(case.layer())
    layer.set_active(index)
    found = gradients(layer, x, dy)
    weight = found["weight"].t() if case in COLUMNS else found["weight"]
    frozen = layer.active.frozen
    assert (weight[frozen] == 0).all()
    assert (found["bias"][frozen] == 0).all()
    assert not weight[20].isfinite().any()
    assert weight[1, 1:].isfinite().all()


def test_frozen_channels_of_dy_are_never_read_with_propagate_active(backend, path):
    case = by_name(LINEAR, "blocks")
    layer = neq.convert(case.layer(), propagate="active")
    layer.set_active([1, 20, 36])
    dy = randn((6, 37), torch.float32, 3)
    dy[:, layer.active.frozen] = float("nan")
    found = gradients(layer, case.x(), dy)
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_layer_without_inputs_or_outputs():
    with pytest.warns(UserWarning, match="zero-element"):
        no_inputs, no_outputs = nn.Linear(0, 5), nn.Linear(5, 0)
    neq.convert(no_inputs).set_active([1])
    no_inputs(torch.empty(3, 0, requires_grad=True)).sum().backward()
    assert no_inputs.bias.grad.tolist() == [0, 3, 0, 0, 0]
    assert no_inputs.weight.grad.shape == (5, 0)
    neq.convert(no_outputs)(torch.ones(3, 5)).sum().backward()
    assert no_outputs.weight.grad.shape == (0, 5)


def test_a_weight_stored_by_columns_gets_a_gradient_stored_by_columns(path):
    layer = nn.Linear(5, 11)
    layer.weight = nn.Parameter(torch.randn(5, 11).t())
    neq.convert(layer).set_active([1, 4])
    layer(torch.randn(3, 5)).sum().backward()
    assert layer.weight.grad.stride() == layer.weight.stride()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_geometry(data):
    dims = data.draw(st.lists(st.integers(0, 5), max_size=3), label="batch dimensions")
    inputs, outputs = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 40))
    make = data.draw(st.booleans())
    case = Case("drawn", lambda: nn.Linear(inputs, outputs, bias=make), (*dims, inputs), "")
    index = sorted(data.draw(st.sets(st.integers(0, outputs - 1)), label="active"))
    propagate = data.draw(st.sampled_from(["all", "active"]))
    check(case, index, propagate, data.draw(st.sampled_from(DTYPES)))


@pytest.mark.parametrize("columns", [False, True])
def test_a_changed_set_is_followed(path, columns):
    plain = (conv1d_columns(TOKENS) if columns else TOKENS).layer()
    layer = inside(copy.deepcopy(plain), "all")
    dim = int(columns)
    for index in ([0, 2], [1, 3, 4], [0]):
        layer.set_active(index)
        layer.zero_grad()
        layer(TOKENS.x()).sum().backward()
        moved = layer.weight.grad.movedim(dim, 0).flatten(1).any(1).nonzero().flatten()
        assert moved.tolist() == index


@pytest.mark.skipif(not native.available(), reason=str(native.why_not()))
@pytest.mark.parametrize(("way", "calls"), [("direct", 0), ("direct+dx", 1)])
def test_whose_dx_it_is(way, calls, force_path, monkeypatch):
    native_dx, seen = reference_conv.linear_dgrad_as_conv, []
    monkeypatch.setattr(
        reference_conv, "linear_dgrad_as_conv", lambda *a: seen.append(a) or native_dx(*a)
    )
    force_path(way)
    layer = inside(TOKENS.layer(), "all")
    layer.set_active([0, 2])
    layer(TOKENS.x()).sum().backward()
    assert len(seen) == calls
