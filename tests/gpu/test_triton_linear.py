"""The linear layer in Triton: every set, form, layout, dtype and odd size, against fp64.

Runs on a GPU, or interpreted: TRITON_INTERPRET=1 python -m pytest tests/gpu/test_triton_linear.py
"""

from dataclasses import replace

import pytest
import torch
from cases import SETS, assert_within, chosen, frozen_of, randn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neq_kernels import reference
from neq_kernels.active import lists

pytest.importorskip("triton")
from neq_kernels.kernels.configuration import Configuration, Tile
from neq_kernels.kernels.linear_backward import linear_backward
from neq_kernels.kernels.linear_dgrad import linear_dgrad
from neq_kernels.kernels.linear_wgrad import linear_wgrad

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poison")]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMS = ("gathered", "packed")
# Tiles so small that small problems have several, with a remainder in every direction.
SMALL = Tile(16, 16, 16, 4, 1)
WHOLE, SHARED = Configuration(SMALL, 1), Configuration(SMALL, 3)


def active(index, size, device):
    padded = torch.full((size,), -1, dtype=torch.int32)
    padded[: len(index)] = torch.tensor(index, dtype=torch.int32)
    return lists(padded.to(device), torch.tensor(len(index)))


def operands(device, tokens=70, inputs=29, size=37, dtype=torch.float32):
    return (
        randn((tokens, size), dtype, 1).to(device),
        randn((tokens, inputs), dtype, 2).to(device),
    )


def rms(tensor):
    return tensor.double().square().mean().sqrt().item() if tensor.numel() else 0.0


def check(dy, x, index, bias=True, columns=False, **options):
    """Contract 1 and 2 for one call."""
    size = dy.shape[-1]
    channels = active(index, size, dy.device)
    dw, db = linear_wgrad(dy, x, channels, bias, columns, **options)
    exact = reference.linear_wgrad(dy.double(), x.double(), channels, bias, columns)
    torchs = reference.linear_wgrad(dy, x, channels, bias, columns)
    dtype = options.get("dtype") or dy.dtype
    frozen = torch.tensor(frozen_of(index, size), dtype=torch.long, device=dy.device)
    length, dims = max(dy.numel() // max(size, 1), 1), (int(columns), 0)
    for ours, truth, own, dim, scale in zip(
        (dw, db), exact, torchs, dims, (rms(dy) * rms(x), rms(dy)), strict=True
    ):
        assert (ours.dtype, ours.shape) == (dtype, truth.shape)
        assert ours.is_contiguous()
        if ours.numel():
            assert (ours.index_select(dim, frozen) == 0).all(), "frozen rows are not zero"
        assert_within(ours.cpu(), truth.cpu(), own.cpu(), length, scale)
    return dw, db


def check_dx(dy, weight, index, columns=False, **options):
    """dX from the active channels alone, and none of what the frozen ones hold."""
    channels = active(index, dy.shape[1], dy.device)
    frozen = torch.tensor(frozen_of(index, dy.shape[1]), dtype=torch.long, device=dy.device)
    poisoned = dy
    if all(dy.stride()):  # or one element would be several channels
        poisoned = torch.empty_strided(dy.shape, dy.stride(), dtype=dy.dtype, device=dy.device)
        poisoned.copy_(dy.index_fill(1, frozen, float("nan")))
    dx = linear_dgrad(poisoned, weight, channels, columns, **options)
    kept, rows = dy[:, index], (weight.t() if columns else weight)[index]
    assert (dx.dtype, dx.shape) == (dy.dtype, (dy.shape[0], rows.shape[1]))
    assert dx.is_contiguous()
    scale = rms(dy) * rms(weight)
    assert_within(
        dx.cpu(), (kept.double() @ rows.double()).cpu(), (kept @ rows).cpu(), dy.shape[1], scale
    )
    return dx


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("configuration", [WHOLE, SHARED, None], ids=["whole", "shared", "chosen"])
def test_every_set(form, columns, configuration, triton_device):
    dy, x = operands(triton_device)
    for name in SETS:
        index = chosen(name, 37)
        check(dy, x, index, columns=columns, form=form, configuration=configuration)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_every_dtype_and_result(dtype, form, triton_device):
    dy, x = operands(triton_device, dtype=dtype)
    for configuration in (WHOLE, SHARED, None):
        for result in (None, torch.float32):
            options = {"form": form, "configuration": configuration, "dtype": result}
            check(dy, x, chosen("odd", 37), **options)
            check(dy, x, chosen("odd", 37), bias=False, columns=True, **options)


@pytest.mark.parametrize("form", [*FORMS, None])
@pytest.mark.parametrize(
    "shape",
    [
        (0, 5, 9),
        (1, 5, 9),
        (2, 0, 9),
        (3, 1, 1),
        (5, 7, 0),
        (16, 16, 16),
        (17, 19, 33),
        (99, 3, 8),
    ],
    ids=str,
)
def test_odd_sizes(shape, form, triton_device):
    tokens, inputs, size = shape
    dy, x = operands(triton_device, tokens, inputs, size)
    for name in ("one", "all but one", "all", "none") if size else ("none",):
        for columns in (False, True):
            for configuration in (WHOLE, SHARED, None):
                check(
                    dy, x, chosen(name, size), columns=columns, form=form,
                    configuration=configuration,
                )  # fmt: skip


def layouts(device):
    """dY and X in every arrangement of memory that a view can give them."""
    dy, x = operands(device)
    wide = randn((70, 80), torch.float32, 3).to(device)
    yield "channels of a wider tensor", wide[:, 3:40], x
    yield "every second channel", wide[:, 1:75:2], x
    yield "tokens contiguous", randn((37, 70), torch.float32, 4).to(device).t(), x
    yield "every second token", randn((140, 37), torch.float32, 5).to(device)[::2], x
    yield "one value", torch.ones((), device=device).expand(70, 37), x
    yield "one token", dy[:1].expand(70, 37), x
    yield "x by columns", dy, randn((29, 70), torch.float32, 6).to(device).t()
    yield "x not aligned", dy, wide[:, 1:30]
    yield "x of one token", dy, x[:1].expand(70, 29)
    yield "batches", dy.view(2, 5, 7, 37), x.view(2, 5, 7, 29)
    yield "batches apart", dy.view(7, 10, 37).transpose(0, 1), x.view(7, 10, 29).transpose(0, 1)


@pytest.mark.parametrize("form", FORMS)
def test_layouts(form, triton_device):
    for _, dy, x in layouts(triton_device):
        for configuration in (WHOLE, SHARED):
            index = [0, 1, 5, 17, 18, 19, 30, 36]
            rows = reference.as_rows(dy), reference.as_rows(x)
            check(*rows, index, form=form, configuration=configuration)
        ours = linear_wgrad(dy, x, active(index, 37, dy.device), True, False, form=form)
        plain = linear_wgrad(*rows, active(index, 37, dy.device), True, False, form=form)
        assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy, interpreted
def test_not_a_number_stays_in_its_own_rows(bad, form, triton_device):
    dy, x = operands(triton_device)
    dy[0, 20], dy[1, 5], x[2, 3] = bad, bad, bad
    for columns in (False, True):
        for configuration in (WHOLE, SHARED):
            dw, db = linear_wgrad(
                dy, x, active([1, 20, 36], 37, dy.device), True, columns,
                form=form, configuration=configuration,
            )  # fmt: skip
            dw = dw.t() if columns else dw
            finite = dw.isfinite()
            assert (dw[frozen_of([1, 20, 36], 37)] == 0).all()
            assert not finite[20].any()
            assert finite[1].sum() == 28
            assert db.isfinite().tolist() == [channel != 20 for channel in range(37)]


@pytest.mark.parametrize("form", FORMS)
def test_bit_identical_from_run_to_run(form, triton_device):
    dy, x = operands(triton_device, tokens=300, dtype=torch.bfloat16)
    channels = active(chosen("odd", 37), 37, triton_device)
    for configuration in (WHOLE, SHARED):
        options = {"form": form, "configuration": configuration}
        once = linear_wgrad(dy, x, channels, True, False, **options)
        again = linear_wgrad(dy, x, channels, True, False, **options)
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("form", [*FORMS, None])
@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
def test_dgrad_of_every_set(form, columns, triton_device):
    dy = operands(triton_device)[0]
    weight = randn((29, 37) if columns else (37, 29), torch.float32, 7).to(triton_device)
    for name in SETS:
        for configuration in (WHOLE, None):
            index = chosen(name, 37)
            check_dx(dy, weight, index, columns, form=form, configuration=configuration)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 5, 9), (1, 5, 9), (2, 0, 9), (17, 19, 40)], ids=str)
def test_dgrad_of_odd_sizes(dtype, shape, triton_device):
    tokens, inputs, size = shape
    dy = operands(triton_device, tokens, inputs, size, dtype)[0]
    for columns in (False, True):
        weight = randn((inputs, size) if columns else (size, inputs), dtype, 7).to(triton_device)
        for form in FORMS:
            for name in ("one", "all but one", "all", "none"):
                check_dx(dy, weight, chosen(name, size), columns, form=form)


@pytest.mark.parametrize("form", FORMS)
def test_dgrad_layouts(form, triton_device):
    weight = randn((37, 29), torch.float32, 7).to(triton_device)
    weights = (weight, weight.t().contiguous().t(), weight.repeat_interleave(2, 1)[:, ::2])
    for _, dy, _ in layouts(triton_device):
        check_dx(reference.as_rows(dy), weight, [0, 1, 5, 17, 36], form=form, configuration=WHOLE)
    for other in weights:
        dy = operands(triton_device)[0]
        check_dx(dy, other, [0, 1, 5, 17, 36], form=form, configuration=WHOLE)


@pytest.mark.parametrize("form", [*FORMS, None])
@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
def test_backward_is_both(form, columns, triton_device):
    dy, x = operands(triton_device, dtype=torch.bfloat16)
    weight = randn((29, 37) if columns else (37, 29), torch.bfloat16, 7).to(triton_device)
    channels = active(chosen("odd", 37), 37, triton_device)
    shapes = (dy.view(7, 10, 37), x.view(7, 10, 29))
    dx, dw, db = linear_backward(*shapes, weight, channels, True, columns, form=form)
    alone = linear_wgrad(dy, x, channels, True, columns, form=form or "packed")
    assert dx.shape == (7, 10, 29)
    torch.testing.assert_close(dx, linear_dgrad(shapes[0], weight, channels, columns))
    torch.testing.assert_close((dw, db), alone)
    assert linear_backward(*shapes, weight, channels, False, columns, form=form)[2].numel() == 0


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda dy, x: (dy, x.half()), TypeError, "got torch.float32 and torch.float16; cast"),
        (lambda dy, x: (dy.double(), x.double()), TypeError, "bfloat16, got torch.float64"),
        (lambda dy, x: (dy.to(torch.complex64),) * 2, TypeError, "got torch.complex64"),
        (lambda dy, x: (dy, x[1:]), ValueError, "x: expected 70 rows like dy, got 69"),
        (lambda dy, x: (dy, x.to("meta")), ValueError, "expected one device, got .*meta and"),
    ],
)
def test_what_cannot_be_right_is_refused(wrong, error, message, triton_device):
    dy, x = wrong(*operands(triton_device))
    with pytest.raises(error, match=message):
        linear_wgrad(dy, x, active([1], 37, triton_device), True, False)


def test_an_index_from_elsewhere_is_refused(triton_device):
    dy, x = operands(triton_device)
    channels = active([1], 37, triton_device)
    channels = replace(channels, padded=channels.padded.to("meta"))
    with pytest.raises(ValueError, match=r"dy, x, index: expected one device, got .* and meta; mo"):
        linear_wgrad(dy, x, channels, True, False)


def test_a_weight_of_another_layer_is_refused(triton_device):
    dy, x = operands(triton_device)
    channels = active([1], 37, triton_device)
    for weight in (x.new_zeros(36, 29), x.new_zeros(29, 37)):
        with pytest.raises(ValueError, match=r"weight: expected 37 neurons like dy, got"):
            linear_backward(dy, x, weight, channels, True, False)
    with pytest.raises(TypeError, match=r"dy, weight: expected both .*got torch.float32 and"):
        linear_dgrad(dy, x.new_zeros(37, 29).half(), channels, False)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_geometry(triton_device, data):
    tokens, inputs = data.draw(st.integers(0, 90)), data.draw(st.integers(0, 40))
    size = data.draw(st.integers(1, 70))
    index = sorted(data.draw(st.sets(st.integers(0, size - 1)), label="active"))
    dtype = data.draw(st.sampled_from(DTYPES))
    tile = Tile(*(data.draw(st.sampled_from((16, 32))) for _ in range(3)), 4, 2)
    configuration = Configuration(tile, data.draw(st.integers(1, 5)))
    dy, x = operands(triton_device, tokens, inputs, size, dtype)
    check(
        dy, x, index, data.draw(st.booleans()), data.draw(st.booleans()),
        form=data.draw(st.sampled_from(FORMS)), configuration=configuration,
    )  # fmt: skip
