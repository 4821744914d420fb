"""Convolutions in 1 to 3 dimensions: every argument, every set, every layout, every path."""

import copy
from functools import partial

import pytest
import torch
from cases import (
    CONV,
    SETS,
    Case,
    assert_exact,
    by_name,
    chosen,
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

pytestmark = [
    pytest.mark.usefixtures("poison", "one_thread", "device"),
    # torch's own remark on its own layer, said once a process.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
IMAGES = [case for case in CONV if len(case.input) in FORMATS and "no-batch" not in case.name]


def check(case, index, propagate="all", dtype=torch.float32, layout=None, x=None, dy=None):
    plain, x = case.layer(dtype), case.x(dtype) if x is None else x
    skip_unserved(dtype, plain.weight.dim() - 2)
    if layout is not None:
        plain = plain.to(memory_format=layout)
        x = x.detach().to(memory_format=layout).requires_grad_()
    y = plain(x)
    if dy is None:
        dy = torch.empty_like(y).copy_(randn(y.shape, dtype, seed=3))
    layer = inside(copy.deepcopy(plain), propagate)
    layer.set_active(index)
    ours = layer(x)
    assert torch.equal(ours, y), "the forward differs from torch's"
    assert ours.stride() == y.stride()
    if propagate == "active" and not index:
        assert not ours.requires_grad
        return layer, None
    found = gradients(layer, x, dy)
    assert_exact(plain, x, dy, index, propagate, found)
    by_torch = gradients(plain, x, dy)
    if index:
        # All active is the plain torch call, which need not care for the strides of single weights.
        like = by_torch["weight"] if layer.active.is_full else layer.weight
        assert found["weight"].stride() == like.stride()
    assert found["x"].stride() == by_torch["x"].stride()
    return layer, found


@pytest.mark.parametrize("case", CONV, ids=ids(CONV))
@pytest.mark.parametrize("propagate", ["all", "active"])
def test_gradients_of_every_set(case, propagate, backend, path):
    for name in SETS:
        check(case, chosen(name, size_of(case.layer())), propagate)


@pytest.mark.parametrize("case", IMAGES, ids=ids(IMAGES))
@pytest.mark.parametrize("propagate", ["all", "active"])
def test_channels_last_in_and_out(case, propagate, backend, path):
    layout = FORMATS[len(case.input)]
    for name in ("odd", "one", "all but one", "none"):
        check(case, chosen(name, size_of(case.layer())), propagate, layout=layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["plain", "groups", "depthwise", "1d"])
@pytest.mark.parametrize("propagate", ["all", "active"])
def test_every_dtype(name, dtype, propagate, backend):
    case = by_name(CONV, name)
    check(case, chosen("odd", size_of(case.layer())), propagate, dtype)


@pytest.mark.parametrize("name", ["plain", "pointwise", "groups", "depthwise"])
@pytest.mark.parametrize("propagate", ["all", "active"])
def test_layouts_of_x_weight_and_dy(name, propagate, backend, path):
    case = by_name(CONV, name)
    index = chosen("odd", size_of(case.layer()))
    y = case.layer()(case.x()).detach()
    dy = randn(y.shape, torch.float32, 6)
    xs = [
        case.x(),
        case.x().detach().to(memory_format=torch.channels_last),
        randn((*case.input[:3], 2 * case.input[3]), torch.float32, 5)[..., ::2],
        case.x().detach()[:1].expand(case.input),
    ]
    dys = [
        dy,
        dy.to(memory_format=torch.channels_last),
        randn((*y.shape[:3], 2 * y.shape[3]), torch.float32, 6)[..., ::2],
        dy[:, :, :1].expand(y.shape),
        torch.ones(()).expand(y.shape),
    ]
    for x in xs:
        for given_dy in dys:
            for layout in (None, torch.channels_last):
                plain = case.layer().to(memory_format=layout or torch.contiguous_format)
                layer = inside(copy.deepcopy(plain), propagate)
                layer.set_active(index)
                given_x = x.detach().requires_grad_()
                found = gradients(layer, given_x, given_dy)
                assert_exact(plain, given_x, given_dy, index, propagate, found)
                assert found["weight"].stride() == layer.weight.stride()


@pytest.mark.parametrize("propagate", ["all", "active"])
@pytest.mark.parametrize("wanted", range(8))
@pytest.mark.parametrize("name", ["plain", "groups"])
def test_only_what_is_asked_for(name, wanted, propagate, path):
    case = by_name(CONV, name)
    for index in ([0, 3, 4], [], list(range(size_of(case.layer())))):
        plain = case.layer()
        plain.weight.requires_grad_(bool(wanted & 2))
        plain.bias.requires_grad_(bool(wanted & 4))
        layer = inside(copy.deepcopy(plain), propagate)
        layer.set_active(index)
        x = case.x().detach().requires_grad_(bool(wanted & 1))
        y = layer(x)
        asked = wanted if index else wanted & 1 and propagate == "all"
        assert y.requires_grad == bool(asked)
        if asked:
            dy = randn(y.shape, torch.float32, 3)
            assert_exact(plain, x, dy, index, propagate, gradients(layer, x, dy))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["plain", "groups", "depthwise", "multiplier", "1d"])
def test_not_a_number_stays_in_its_own_rows(bad, name, backend, path):
    case = by_name(CONV, name)
    size = size_of(case.layer())
    index = [1, size - 2]
    x = case.x()
    with torch.no_grad():
        x.flatten()[0] = bad
    dy = torch.randn_like(case.layer()(case.x()))
    dy[0, 1], dy[1, 3] = bad, bad
    layer = neq.convert(case.layer())
    layer.set_active(index)
    found = gradients(layer, x, dy)
    frozen = layer.active.frozen
    assert (found["weight"][frozen] == 0).all()
    assert (found["bias"][frozen] == 0).all()
    assert not found["bias"][1].isfinite()
    assert found["bias"][size - 2].isfinite()


@pytest.mark.parametrize("name", ["plain", "groups", "depthwise", "multiplier", "3d-groups"])
def test_frozen_channels_of_dy_are_never_read_with_propagate_active(name, backend, path):
    case = by_name(CONV, name)
    layer = neq.convert(case.layer(), propagate="active")
    layer.set_active([1, size_of(layer) - 2])
    dy = torch.randn_like(case.layer()(case.x()))
    dy[:, layer.active.frozen] = float("nan")
    found = gradients(layer, case.x(), dy)
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("propagate", ["all", "active"])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_patches_as_far_apart_as_a_vits(kind, propagate):
    """Where the rule would have the kernel for few channels, which cannot step so far."""
    shape = (8, 3, 256) if kind is nn.Conv1d else (8, 3, 64, 64)
    for stride in (8, 16):
        make = partial(kind, 3, 96, 16, stride=stride)
        check(Case("patches", make, shape, ""), [1, 5], propagate)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_geometry(data):
    def draw(low, high, label):
        return data.draw(st.integers(low, high), label=label)

    dims = draw(1, 3, "dims")
    groups = draw(1, 4, "groups")
    fan_in, per_group = draw(1, 3, "in per group"), draw(1, 7, "out per group")
    kernel = tuple(draw(1, 3, "kernel") for _ in range(dims))
    dilation = tuple(draw(1, 2, "dilation") for _ in range(dims))
    modes = ["zeros", "reflect", "replicate", "circular"]
    options = {
        "stride": tuple(draw(1, 3, "stride") for _ in range(dims)),
        "padding": tuple(draw(0, 2, "padding") for _ in range(dims)),
        "dilation": dilation,
        "groups": groups,
        "bias": data.draw(st.booleans()),
        "padding_mode": data.draw(st.sampled_from(modes)),
    }
    if set(options["stride"]) == {1} and data.draw(st.booleans()):
        options["padding"] = data.draw(st.sampled_from(["same", "valid"]))
    smallest = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    spatial = [max(s, 3) + draw(0, 3, "more") for s in smallest]
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    size = groups * per_group

    def make():
        return kind(groups * fan_in, size, kernel, **options)

    case = Case("drawn", make, (draw(0, 3, "batch"), groups * fan_in, *spatial), "")
    layout = data.draw(st.sampled_from([None, FORMATS.get(dims + 2)]), label="layout")
    if options["padding_mode"] != "zeros" and not case.input[0]:
        return  # F.pad itself refuses an empty batch.
    index = sorted(data.draw(st.sets(st.integers(0, size - 1)), label="active"))
    check(case, index, data.draw(st.sampled_from(["all", "active"])), layout=layout)
