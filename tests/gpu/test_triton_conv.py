"""conv_wgrad and conv_backward in Triton: every window, set, form, layout and dtype, against fp64.

Runs on a GPU, or interpreted: TRITON_INTERPRET=1 python -m pytest tests/gpu/test_triton_conv.py
"""

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from cases import SETS, assert_within, chosen, frozen_of, randn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neq_kernels import reference
from neq_kernels.active import lists

pytest.importorskip("triton")
from neq_kernels.kernels import conv
from neq_kernels.kernels import conv_wgrad as kernel
from neq_kernels.kernels.configuration import Configuration, Tile
from neq_kernels.kernels.conv import Options, conv_backward, conv_wgrad

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("poison", "one_thread", "full_precision", "few"),
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMS = ("gathered", "packed")
# Tiles so small that small problems have several, with a remainder in every direction.
SMALL = Tile(16, 16, 32, 4, 1)
WHOLE, SHARED = Configuration(SMALL, 1), Configuration(SMALL, 3)


@pytest.fixture
def full_precision():
    """Float32 products in float32, as the fp64 truth asks for."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def few(monkeypatch):
    """Columns of one tap from so few channels on that small problems have both kinds of columns."""
    monkeypatch.setattr(kernel, "_FLAT_BELOW", 8)
    monkeypatch.setattr(kernel, "_NARROW", 6)
    plans = (conv._plans.made, conv._packed_launches.made)
    for made in plans:
        made.clear()
    yield
    for made in plans:
        made.clear()


@dataclass(frozen=True)
class Case:
    """A convolution and the reason why it is tested."""

    name: str
    reason: str
    channels: tuple[int, int] = (5, 19)
    image: tuple[int, int] = (6, 5)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    images: int = 2

    def operands(self, device, dtype=torch.float32, last=(False, False, False)):
        """dY, x and the weight, each in channels last if so wished."""
        inputs, outputs = self.channels
        x = randn((self.images, inputs, *self.image), dtype, 1)
        weight = randn((outputs, inputs // self.groups, *self.kernel), dtype, 2)
        shape = torch.nn.functional.conv2d(
            x.to("meta"), weight.to("meta"), None, self.stride, self.padding, self.dilation,
            self.groups,
        ).shape  # fmt: skip
        formats = [torch.channels_last if l else torch.contiguous_format for l in last]
        made = (randn(tuple(shape), dtype, 3), x, weight)
        return [t.to(device, memory_format=f) for t, f in zip(made, formats, strict=True)]

    @property
    def window(self):
        return self.stride, self.padding, self.dilation, self.groups


CASES = [
    Case("few-channels", "taps and channels share the columns: FLAT"),
    Case("taps", "columns are the channels of one tap, more than one tile of them", (18, 19)),
    Case("uneven", "dY larger than X: its bias has more steps", (8, 19), padding=(3, 2)),
    Case("valid", "X larger than dY", (8, 19), padding=(0, 0)),
    Case("dilation", "taps spread out", (8, 9), (7, 8), padding=(2, 0), dilation=(2, 3)),
    Case("stride", "rows of X that no output reads", (8, 9), (9, 8), stride=(2, 3)),
    Case("stride-dilation", "some taps reach no position of a phase", (3, 9), (9, 8), (3, 2),
         (3, 2), (2, 1), (2, 2)),
    Case("stride-beyond", "phases that no tap reaches", (4, 9), (7, 9), (2, 1), (4, 3), (0, 0)),
    Case("asymmetric", "kernels not square", (7, 9), (5, 9), (1, 5), padding=(0, 2)),
    Case("pointwise", "a plain product", (18, 19), (5, 7), (1, 1), padding=(0, 0)),
    Case("pointwise-padded", "outputs beyond the input", (18, 17), (3, 4), (1, 1)),
    Case("pointwise-stride", "ResNet's downsampling", (18, 17), (5, 4), (1, 1), (2, 2), (0, 0)),
    Case("pixel", "planes of one position", (18, 17), (1, 1), (1, 1), padding=(0, 0)),
    Case("aligned", "planes and channels that load wide", (16, 32), (4, 8), (2, 2), padding=(0, 1)),
    Case("groups", "sets that leave a group part-filled or empty", (12, 18), groups=3),
    Case("groups-pointwise", "groups of a plain product", (12, 18), (4, 4), (1, 1), padding=(0, 0),
         groups=3),
    Case("groups-wide", "more channels in a group than a tile has", (36, 38), (3, 4), (1, 2),
         padding=(0, 0), groups=2),
    Case("groups-stride", "groups and phases", (6, 12), (7, 6), stride=(2, 2), groups=2),
    Case("depthwise", "one channel a group", (35, 35), (3, 4), groups=35),
    Case("multiplier", "depthwise, three outputs per input", (7, 21), stride=(2, 1), groups=7),
    Case("depthwise-stride", "taps that reach no position", (5, 5), (9, 8), (5, 3), (2, 3), (2, 1),
         (1, 2), groups=5),
    Case("one-channel", "an input channel's stride is arbitrary", (1, 9)),
    Case("one-output", "a single row: all or none", (3, 1)),
    Case("one-image", "an image's stride is arbitrary", (5, 9), images=1),
    Case("no-image", "the last batch may be empty", (5, 9), images=0),
    Case("long-sum", "error must not grow with the number of positions", (2, 3), (30, 30)),
]  # fmt: skip
ids = [case.name for case in CASES]
by_name = {case.name: case for case in CASES}


def active(index, size, device):
    padded = torch.full((size,), -1, dtype=torch.int32)
    padded[: len(index)] = torch.tensor(index, dtype=torch.int32)
    return lists(padded.to(device), torch.tensor(len(index)))


def rms(tensor):
    return tensor.double().square().mean().sqrt().item() if tensor.numel() else 0.0


def check(operands, index, window, bias=True, **options):
    """Contracts 1 and 2 for both operators."""
    dy, x, weight = operands
    size, options = weight.shape[0], Options(**options)
    channels = active(index, size, dy.device)
    ours = conv_backward(dy, x, weight, channels, bias, *window, options=options)
    if index:
        double = [tensor.double() for tensor in operands]
        exact = reference.conv_backward(*double, channels, bias, *window)
        torchs = reference.conv_backward(*operands, channels, bias, *window)
    else:
        exact = torchs = [
            torch.zeros_like(tensor) for tensor in (x, weight, weight.flatten(1).sum(1))
        ]
    frozen = torch.tensor(frozen_of(index, size), dtype=torch.long, device=dy.device)
    wanted = options.dtype or dy.dtype
    assert [t.dtype for t in ours] == [dy.dtype, wanted, wanted]
    assert ours[0].stride() == torch.empty_like(x, device="meta").stride()
    assert ours[1].stride() == weight.stride()
    for rows in ours[1:] if bias else ours[1:2]:
        assert (rows.index_select(0, frozen) == 0).all(), "frozen rows are not zero"
    terms = len(index) * weight[0].numel() // weight.shape[1] if size else 1
    positions = max(dy.numel() // max(size, 1), 1)
    lengths = (max(terms, 1), positions, positions)
    scales = (rms(dy) * rms(weight), rms(dy) * rms(x), rms(dy))
    for name, found, truth, own, length, scale in zip(
        "xwb", ours, exact, torchs, lengths, scales, strict=True
    ):
        if name == "b" and not bias:
            assert found.numel() == 0
            continue
        assert found.shape == truth.shape
        assert_within(found.cpu(), truth.cpu(), own.cpu(), length, scale, name)
    return ours


# Which of dY, x and weight are in channels last, and how they are computed.
LAYOUTS = {
    "nchw": ((False, False, False), "gathered", SHARED),
    "nchw, whole": ((False, False, False), "gathered", WHOLE),
    "nhwc, packed": ((True, True, True), "packed", SHARED),
    "nhwc, gathered": ((True, True, True), "gathered", WHOLE),
    "nhwc, weight not": ((True, True, False), "packed", WHOLE),
    "dy nhwc": ((True, False, False), "packed", SHARED),
    "x nhwc": ((False, True, True), "gathered", WHOLE),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_every_window_and_layout(case, layout, triton_device):
    last, form, configuration = LAYOUTS[layout]
    operands = case.operands(triton_device, last=last)
    index = chosen("odd", case.channels[1])
    check(operands, index, case.window, form=form, configuration=configuration)


@pytest.mark.parametrize("name", ["few-channels", "pointwise", "groups", "multiplier"])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_every_set(name, last, triton_device):
    case = by_name[name]
    operands = case.operands(triton_device, last=(last,) * 3)
    for place, name_of_set in enumerate(SETS):
        index = chosen(name_of_set, case.channels[1])
        configuration = (WHOLE, SHARED)[place % 2]
        check(operands, index, case.window, form=FORMS[last], configuration=configuration)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", ["few-channels", "taps", "pointwise", "groups", "depthwise"])
def test_every_dtype_and_result(name, last, dtype, triton_device):
    case = by_name[name]
    operands = case.operands(triton_device, dtype, (last,) * 3)
    index = chosen("odd", case.channels[1])
    for configuration in (WHOLE, SHARED):
        check(operands, index, case.window, configuration=configuration)
        check(operands, index, case.window, False, configuration=configuration, dtype=torch.float32)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", ["few-channels", "taps", "pointwise", "groups", "depthwise"])
def test_the_chosen_configuration(name, last, triton_device):
    case = by_name[name]
    operands = case.operands(triton_device, torch.float16, (last,) * 3)
    check(operands, chosen("odd", case.channels[1]), case.window)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", ["few-channels", "taps", "pointwise", "groups", "depthwise"])
def test_wgrad_alone_is_the_same(name, last, triton_device):
    case = by_name[name]
    operands = case.operands(triton_device, last=(last,) * 3)
    channels = active(chosen("odd", case.channels[1]), case.channels[1], triton_device)
    options = Options(configuration=WHOLE)
    alone = conv_wgrad(*operands, channels, True, *case.window, options=options)
    _, *both = conv_backward(*operands, channels, True, *case.window, options=options)
    for ours, other in zip(alone, both, strict=True):
        assert ours.stride() == other.stride()
        torch.testing.assert_close(ours, other)


def views(device):
    """dY and X of the case "taps" in arrangements of memory that views can give them."""
    case = replace(by_name["taps"], channels=(10, 7))
    dy, x, _ = case.operands(device)
    wide = randn((2, 10, 8, 10), torch.float32, 4).to(device)
    yield "every second column", randn((2, 7, 6, 10), torch.float32, 5).to(device)[..., ::2], x
    yield "cropped", dy, wide[:, :, 1:7, 2:7]
    yield "cropped channels last", dy, wide.to(memory_format=torch.channels_last)[:, :, 1:7, 2:7]
    yield "channels of more", randn((2, 20, 6, 5), torch.float32, 6).to(device)[:, 3:17:2], x
    yield "one value", torch.ones((), device=device).expand(dy.shape), x
    yield "one plane", dy[:, :1].expand(dy.shape), x[:1].expand(x.shape)
    yield "pooled", dy[:, :, :1, :1].expand(dy.shape), x
    yield "columns first", dy.transpose(2, 3).contiguous().transpose(2, 3), x
    yield "not aligned", dy, torch.randn(x.numel() + 1, device=device)[1:].view(x.shape)


@pytest.mark.parametrize("form", FORMS)
def test_views(form, triton_device):
    case = replace(by_name["taps"], channels=(10, 7))
    weight = case.operands(triton_device)[2]
    for _, dy, x in views(triton_device):
        check((dy, x, weight), [0, 2, 3, 6], case.window, form=form, configuration=SHARED)


def test_one_dimension(triton_device):
    for stride, groups in itertools.product((1, 2), (1, 3, 6)):
        dy, x = randn((2, 12, 9 // stride), torch.float32, 1), randn((2, 6, 9), torch.float32, 2)
        weight = randn((12, 6 // groups, 2 + stride), torch.float32, 3)
        weight = weight[..., : 9 - (9 // stride - 1) * stride + 2]
        operands = [tensor.to(triton_device) for tensor in (dy, x, weight)]
        padding = ((9 // stride - 1) * stride + weight.shape[2] - 9 + 1) // 2
        window = ((stride,), (padding,), (1,), groups)
        found = check(operands, [0, 3, 4, 11], window, configuration=SHARED)
        assert [t.shape for t in found[:2]] == [x.shape, weight.shape]


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", ["few-channels", "taps", "pointwise", "groups", "multiplier"])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy, interpreted
def test_not_a_number_stays_in_its_own_rows(name, last, bad, triton_device):
    case = by_name[name]
    dy, x, weight = case.operands(triton_device, last=(last,) * 3)
    size = case.channels[1]
    index = [0, 1, size - 1]
    dy[0, 1, 1, 1] = bad
    dy[:, frozen_of(index, size)] = bad
    for form, configuration in zip(FORMS, (WHOLE, SHARED), strict=True):
        options = Options(form=form, configuration=configuration)
        channels = active(index, size, triton_device)
        _, dw, db = conv_backward(dy, x, weight, channels, True, *case.window, options=options)
        assert db.isfinite().tolist() == [channel != 1 for channel in range(size)]
        assert dw.flatten(1).isfinite().all(1).tolist() == db.isfinite().tolist()
        assert (dw[frozen_of(index, size)] == 0).all()


@pytest.mark.parametrize("name", ["few-channels", "stride", "pointwise", "groups", "multiplier"])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_frozen_channels_of_dy_never_count(name, last, triton_device):
    case = by_name[name]
    dy, x, weight = case.operands(triton_device, last=(last,) * 3)
    size = case.channels[1]
    dy[:, frozen_of([1, size - 2], size)] = float("nan")
    for form in FORMS:
        options = Options(form=form, configuration=WHOLE)
        channels = active([1, size - 2], size, triton_device)
        found = conv_backward(dy, x, weight, channels, True, *case.window, options=options)
        assert all(gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_bit_identical_from_run_to_run(last, triton_device):
    for name in ("taps", "groups", "multiplier"):
        case = by_name[name]
        operands = case.operands(triton_device, torch.bfloat16, (last,) * 3)
        channels = active(chosen("odd", case.channels[1]), case.channels[1], triton_device)
        runs = [
            conv_backward(
                *operands, channels, True, *case.window, options=Options(configuration=SHARED)
            )
            for _ in range(2)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


WRONG = [
    (lambda dy, x, w: (dy, x.half(), w), 1, TypeError, "got torch.float32 and torch.float16; cast"),
    (lambda dy, x, w: (dy.double(), x.double(), w), 1, TypeError, "bfloat16, got torch.float64"),
    (lambda dy, x, w: (dy.cfloat(), x.cfloat(), w), 1, TypeError, "got torch.complex64"),
    (lambda dy, x, w: (dy, x, w.half()), 1, TypeError, "weight: expected torch.float32 on"),
    (lambda dy, x, w: (dy, x.to("meta"), w), 1, ValueError, "expected one device, got .*meta and"),
    (lambda dy, x, w: (dy[:, :, :2], x, w), 1, ValueError, r"dy: expected \[2, 19, 6, 5\], the"),
    (lambda dy, x, w: (dy[:1], x, w), 1, ValueError, r"dy: expected \[2, 19, 6, 5\], the output"),
    (lambda dy, x, w: (dy[:, :9], x, w), 1, ValueError, "expected a list over the 9 channels"),
    (lambda dy, x, w: (dy, x, w[:, :4]), 1, ValueError, "groups: expected a divisor of 19 outputs"),
    (lambda dy, x, w: (dy, x, w), 2, ValueError, "groups: expected a divisor .* got 2 and weight"),
    (lambda dy, x, w: (dy, x, w), 0, ValueError, "groups: expected a divisor .* got 0 and weight"),
    (lambda dy, x, w: (dy[None], x[None], w), 1, ValueError, "3 dimensions are for another backe"),
]


@pytest.mark.parametrize(("wrong", "groups", "error", "message"), WRONG)
def test_what_cannot_be_right_is_refused(wrong, groups, error, message, triton_device):
    case = by_name["few-channels"]
    operands = wrong(*case.operands(triton_device))
    channels = active([1], 19, triton_device)
    with pytest.raises(error, match=message):
        conv_backward(*operands, channels, True, *case.window[:3], groups)


def test_an_index_from_elsewhere_is_refused(triton_device):
    case = by_name["few-channels"]
    operands = case.operands(triton_device)
    channels = active([1], 19, triton_device)
    channels = replace(channels, padded=channels.padded.to("meta"))
    with pytest.raises(ValueError, match=r"dy, x, index: expected one device, got .* and meta; mo"):
        conv_backward(*operands, channels, True, *case.window)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_geometry(triton_device, data):
    def pair(low, high, label):
        return tuple(data.draw(st.integers(low, high), label=f"{label} {k}") for k in "hw")

    groups = data.draw(st.sampled_from((1, 1, 2, 3)), label="groups")
    fan_in, fan_out = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 20))
    kernel, dilation = pair(1, 3, "kernel"), pair(1, 2, "dilation")
    smallest = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    image = tuple(s + more for s, more in zip(smallest, pair(0, 5, "more"), strict=True))
    case = Case(
        "drawn", "", (groups * fan_in, groups * fan_out), image, kernel, pair(1, 3, "stride"),
        pair(0, 2, "padding"), dilation, groups, data.draw(st.integers(0, 3), label="images"),
    )  # fmt: skip
    last = data.draw(st.tuples(*[st.booleans()] * 3), label="channels last")
    operands = case.operands(triton_device, data.draw(st.sampled_from(DTYPES)), last)
    size = groups * fan_out
    index = sorted(data.draw(st.sets(st.integers(0, size - 1)), label="active"))
    check(
        operands, index, case.window, data.draw(st.booleans(), label="bias"),
        form=data.draw(st.sampled_from((*FORMS, None)), label="form"),
        configuration=Configuration(SMALL, data.draw(st.integers(1, 4), label="split")),
    )  # fmt: skip
