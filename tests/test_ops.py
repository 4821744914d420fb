"""The registered operators: schemas, fakes and FLOP formulas against what they really do."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from neq_kernels import ops  # noqa: F401  (registers the operators)

registered = torch.ops.neq_kernels
BATCH, IN, OUT = 3, 4, 6
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def active_lists(channels, size=OUT):
    index = torch.full((size,), -1, dtype=torch.int32)
    index[: len(channels)] = torch.tensor(channels, dtype=torch.int32)
    return index, torch.tensor(len(channels))


def linear_arguments(name, channels, bias=True, columns=False, tokens=(BATCH, 5)):
    dy, x = torch.randn(*tokens, OUT), torch.randn(*tokens, IN)
    weight = [torch.randn(IN, OUT) if columns else torch.randn(OUT, IN)]
    if name == "linear_wgrad":
        weight = []
    return (dy, x, *weight, *active_lists(channels), bias, columns)


def conv_arguments(channels, bias=True, dims=2, groups=1, last=False, x_last=None, stride=1):
    x = torch.randn(BATCH, IN, *(5,) * dims)
    weight = torch.randn(OUT, IN // groups, *(3,) * dims)
    geometry = [stride] * dims, [1] * dims, [1] * dims, groups
    dy = torch.randn(BATCH, OUT, *((5 - 1) // stride + 1,) * dims)
    if last:
        dy, weight = (t.to(memory_format=LAST[t.dim()]) for t in (dy, weight))
    if last if x_last is None else x_last:
        x = x.to(memory_format=LAST[x.dim()])
    return (dy, x, weight, *active_lists(channels), bias, *geometry)


SETS = {"none": [], "one": [4], "some": [0, 2, 5], "all": list(range(OUT))}
CASES = {}
for _set, _channels in SETS.items():
    for _name in ("linear_wgrad", "linear_backward"):
        CASES[f"{_name} {_set}"] = _name, linear_arguments(_name, _channels)
    for _name in ("conv_wgrad", "conv_backward"):
        CASES[f"{_name} {_set}"] = _name, conv_arguments(_channels)
        CASES[f"{_name} {_set} last"] = _name, conv_arguments(_channels, last=True)
    CASES[f"mask_rows {_set}"] = "mask_rows", (torch.randn(2, OUT, 3), *active_lists(_channels), 1)
for _name in ("linear_wgrad", "linear_backward"):
    CASES[f"{_name} columns"] = _name, linear_arguments(_name, [1, 2], columns=True)
    CASES[f"{_name} no bias"] = _name, linear_arguments(_name, [1, 2], bias=False)
    CASES[f"{_name} one token"] = _name, linear_arguments(_name, [1], tokens=())
    CASES[f"{_name} no token"] = _name, linear_arguments(_name, [1], tokens=(0, 2))
for _name in ("conv_wgrad", "conv_backward"):
    CASES[f"{_name} 1d"] = _name, conv_arguments([1, 2], dims=1)
    CASES[f"{_name} 3d last"] = _name, conv_arguments([1, 2], dims=3, last=True)
    CASES[f"{_name} groups"] = _name, conv_arguments([1, 2], groups=2)
    CASES[f"{_name} groups last"] = _name, conv_arguments([1, 2], groups=2, last=True)
    CASES[f"{_name} strided"] = _name, conv_arguments([3], stride=2, bias=False)
    CASES[f"{_name} only x last"] = _name, conv_arguments([3], last=False, x_last=True)
    CASES[f"{_name} only dy last"] = _name, conv_arguments([3], last=True, x_last=False)
CASES["mask_rows strided"] = "mask_rows", (torch.randn(4, OUT, 3).mT, *active_lists([1]), 2)
CASES["mask_rows bias"] = "mask_rows", (torch.randn(OUT), *active_lists([1]), 0)


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize(("name", "arguments"), CASES.values(), ids=CASES)
def test_opcheck(name, arguments):
    torch.library.opcheck(getattr(registered, name).default, arguments)


@pytest.mark.parametrize(("name", "arguments"), CASES.values(), ids=CASES)
def test_fakes_have_the_shapes_and_strides_of_the_real_results(name, arguments):
    operator = getattr(registered, name)
    real = as_tuple(operator(*arguments))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        fake = as_tuple(operator(*fakes))
    for got, expected in zip(fake, real, strict=True):
        assert got.shape == expected.shape
        assert got.stride() == expected.stride()
        assert got.dtype == expected.dtype


@pytest.mark.parametrize(("name", "arguments"), CASES.values(), ids=CASES)
def test_inputs_stay_and_results_are_fresh(name, arguments):
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    before = [t.clone() for t in tensors]
    results = as_tuple(getattr(registered, name)(*arguments))
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
    storages = {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
    for result in results:
        assert not result.numel() or result.untyped_storage().data_ptr() not in storages


@pytest.mark.parametrize("channels", SETS.values(), ids=SETS)
@pytest.mark.parametrize("columns", [False, True])
def test_linear_operators_against_the_formula(path, columns, channels):
    mask = torch.zeros(OUT)
    mask[channels] = 1
    arguments = linear_arguments("linear_backward", channels, columns=columns)
    dy, x, weight, index, count, *_ = arguments
    masked = dy * mask
    dw = torch.einsum("bto,bti->io" if columns else "bto,bti->oi", masked, x)
    wgrad = registered.linear_wgrad(dy, x, index, count, True, columns)
    dx, *both = registered.linear_backward(*arguments)
    for got in (wgrad, both):
        torch.testing.assert_close(got[0], dw)
        torch.testing.assert_close(got[1], masked.sum((0, 1)))
    torch.testing.assert_close(dx, masked @ (weight.t() if columns else weight))


@pytest.mark.parametrize("channels", SETS.values(), ids=SETS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("last", [False, True])
def test_conv_operators_against_a_masked_dense_backward(path, last, groups, channels):
    arguments = conv_arguments(channels, groups=groups, last=last, stride=2)
    dy, x, weight, *_, groups = arguments
    mask = torch.zeros(OUT)
    mask[channels] = 1
    dx, dw, db = torch.ops.aten.convolution_backward(
        dy * mask.view(-1, 1, 1), x, weight, [OUT], [2, 2], [1, 1], [1, 1],
        False, [0, 0], groups, [True] * 3,
    )  # fmt: skip
    wgrad = registered.conv_wgrad(*arguments)
    got_dx, *both = registered.conv_backward(*arguments)
    torch.testing.assert_close(got_dx, dx)
    for got in (wgrad, both):
        torch.testing.assert_close(got[0], dw)
        torch.testing.assert_close(got[1], db)
        frozen = mask == 0
        assert (got[0][frozen] == 0).all()
        assert (got[1][frozen] == 0).all()


def counted(operator, arguments):
    with FlopCounterMode(display=False) as counter:
        operator(*arguments)
    return counter.get_total_flops()


@pytest.mark.parametrize("channels", SETS.values(), ids=SETS)
def test_flops_of_linear_operators(channels):
    """2 per product: tokens * inputs * active outputs, twice with dX."""
    one = 2 * (BATCH * 5) * IN * len(channels)
    for name, flops in (("linear_wgrad", one), ("linear_backward", 2 * one)):
        assert counted(getattr(registered, name), linear_arguments(name, channels)) == flops


@pytest.mark.parametrize("channels", SETS.values(), ids=SETS)
@pytest.mark.parametrize("groups", [1, 2])
def test_flops_of_conv_operators(channels, groups):
    """2 per product: positions * weights of a neuron * active neurons, twice with dX."""
    one = 2 * (BATCH * 25) * (IN // groups * 9) * len(channels)
    arguments = conv_arguments(channels, groups=groups)
    assert counted(registered.conv_wgrad, arguments) == one
    assert counted(registered.conv_backward, arguments) == 2 * one


GOOD = linear_arguments("linear_wgrad", [1, 2])


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (2, torch.zeros(OUT, dtype=torch.int64), r"index: expected int32 of shape \[6\].*int64"),
        (
            2,
            torch.zeros(OUT + 1, dtype=torch.int32),
            r"index: expected int32 of shape \[6\].*\[7\]",
        ),
        (2, torch.zeros(2, 3, dtype=torch.int32), r"index: expected int32 of shape \[6\]"),
        (3, torch.tensor([2]), r"count: expected a 0-d int64 tensor on the cpu, got .*\[1\]"),
        (3, torch.tensor(2, dtype=torch.int32), r"count: expected a 0-d int64.*int32"),
        (1, torch.randn(BATCH, 5, IN).double(), r"x: expected torch\.float32 on cpu like dy"),
        (3, torch.tensor(7), r"count: expected"),
        (3, torch.tensor(-1), r"count: expected"),
        (1, torch.randn(BATCH, 4, IN), r"x: expected"),
    ],
)
def test_wrong_arguments(place, wrong, message):
    arguments = list(GOOD)
    arguments[place] = wrong
    with pytest.raises(ValueError, match=message):
        registered.linear_wgrad(*arguments)
