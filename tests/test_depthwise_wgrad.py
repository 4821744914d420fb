"""The native depthwise_wgrad against a dense convolution's backward in fp64."""

from dataclasses import dataclass

import pytest
import torch

from neq_kernels import backends, native, reference
from neq_kernels.active import lists

pytestmark = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FORMATS = ["contiguous", "last", "dy last", "x last", "strided", "expanded dy"]


@dataclass(frozen=True)
class Conv:
    """x of ``[batch, inputs, *size]``, ``multiplier`` outputs per input, a number per dimension."""

    batch: int
    inputs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    multiplier: int = 1

    @property
    def outputs(self):
        return self.inputs * self.multiplier

    @property
    def window(self):
        return list(self.stride), list(self.padding), list(self.dilation)

    def tensors(self, dtype=torch.float32, form="contiguous"):
        torch.manual_seed(0)
        x = torch.randn(self.batch, self.inputs, *self.size).to(dtype)
        weight = torch.randn(self.outputs, 1, *self.kernel).to(dtype)
        run = (torch.conv1d, torch.conv2d)[len(self.size) - 1]
        out = run(x.double(), weight.double(), None, *self.window, self.inputs).shape
        dy = torch.randn(out).to(dtype)
        if form == "strided":
            return _every_other(dy), _every_other(x), weight
        if form == "expanded dy":
            return dy[:, :, :1].expand(out) if out[2] else dy, x, weight
        dy = _last(dy) if form in ("last", "dy last") else dy
        x = _last(x) if form in ("last", "x last") else x
        return dy, x, _last(weight) if form == "last" and weight.dim() == 4 else weight

    def exact(self, dy, x, weight, dtype=torch.float64):
        """(dW, db) of all channels."""
        dims = len(self.size)
        _, dw, db = torch.ops.aten.convolution_backward(
            dy.to(dtype), x.to(dtype), weight.to(dtype), [self.outputs], *self.window, False,
            [0] * dims, self.inputs, [False, True, True],
        )  # fmt: skip
        return dw, db


def _conv(batch, inputs, size, kernel=3, stride=1, padding=1, dilation=1, multiplier=1):
    each = [
        value if isinstance(value, tuple) else (value,) * len(size)
        for value in (kernel, stride, padding, dilation)
    ]
    return Conv(batch, inputs, size, *each, multiplier)


CONVS = {
    "planes below a vector": _conv(5, 19, (3, 3)),
    "7x7": _conv(3, 40, (7, 7)),
    "one band": _conv(2, 10, (24, 24)),
    "several bands": _conv(1, 3, (70, 130)),
    "stride 2": _conv(2, 17, (14, 13), stride=2),
    "stride beyond the kernel": _conv(2, 9, (13, 20), stride=(5, 7), dilation=(3, 2)),
    "5x5": _conv(2, 11, (12, 20), kernel=5, padding=2),
    "5x5, stride 2": _conv(2, 11, (23, 9), kernel=5, padding=2, stride=2),
    "7x7 kernel": _conv(1, 8, (20, 20), kernel=7, padding=3),
    "dilation": _conv(2, 8, (9, 30), dilation=(2, 3), padding=(2, 3)),
    "padding beyond the input": _conv(2, 5, (4, 4), padding=(5, 4)),
    "no padding": _conv(2, 12, (5, 9), padding=0),
    "1x1": _conv(2, 11, (6, 5), kernel=1, padding=0),
    "not square": _conv(2, 9, (9, 40), kernel=(1, 4), padding=(0, 3)),
    "multiplier": _conv(2, 8, (6, 9), multiplier=3, stride=(1, 2)),
    "one input": _conv(2, 1, (6, 9), multiplier=12),
    "many channels": _conv(2, 300, (4, 3)),
    "vectors that pair with none": _conv(9, 72, (5, 5)),
    "maps beyond one walk": _conv(3, 72, (26, 19), stride=(2, 1)),
    "sequence": _conv(3, 20, (33,), kernel=4, padding=3),
    "long sequence": _conv(1, 4, (3000,), kernel=3, stride=2, dilation=4, multiplier=2),
    "one element": _conv(1, 3, (1, 1)),
    "empty batch": _conv(0, 6, (5, 5)),
}


def _last(tensor):
    if tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def _every_other(tensor):
    wide = tensor.repeat_interleave(2, -1).repeat_interleave(2, 1)
    return wide[:, ::2, ..., ::2]


def _some(channels, count):
    return torch.randperm(channels)[:count].sort().values.int()


def _wgrad(conv, dy, x, weight, index, width=None, bias=True):
    width = index.numel() if width is None else width
    return torch.ops.neq_kernels.depthwise_wgrad(dy, x, weight, index, width, *conv.window, bias)


def _assert_right(conv, tensors, index, dw, db):
    """Contract 1 for active rows, zero for the others."""
    dy, x, weight = tensors
    active = torch.zeros(conv.outputs, dtype=torch.bool)
    active[index[index >= 0].long()] = True
    assert dw.stride() == weight.stride()
    length = dy.numel() / max(conv.outputs, 1)
    scale = float(dy.abs().max() * x.abs().max().clamp(min=1)) if dy.numel() else 1.0
    truth, own = conv.exact(*tensors), conv.exact(*tensors, dtype=dy.dtype)
    for ours, exact, theirs in zip((dw, db), truth, own, strict=True):
        assert not ours[~active].any()
        allowed = 4 * torch.finfo(dy.dtype).eps * length**0.5 * scale
        if exact.numel():
            allowed = max(allowed, 2 * float((theirs.double() - exact).abs().max()))
        assert ((ours.double() - exact)[active].abs() <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", CONVS)
def test_equals_a_dense_backward(name, form, dtype, isa, poison):
    conv = CONVS[name]
    tensors = conv.tensors(dtype, form)
    for count in sorted({0, 1, conv.outputs // 3, conv.outputs}):
        index = _some(conv.outputs, count)
        _assert_right(conv, tensors, index, *_wgrad(conv, *tensors, index))


@pytest.mark.parametrize("form", ["contiguous", "last"])
@pytest.mark.parametrize("name", ["7x7", "one band", "multiplier"])
def test_padding_of_the_list_is_ignored(name, form, isa):
    conv = CONVS[name]
    tensors = conv.tensors(form=form)
    for count in (0, 1, 7):
        index = torch.cat([_some(conv.outputs, count), torch.full((3,), -1, dtype=torch.int32)])
        dw, db = _wgrad(conv, *tensors, index)
        _assert_right(conv, tensors, index, dw, db)


@pytest.mark.parametrize("form", ["contiguous", "last"])
@pytest.mark.parametrize(
    "name", ["7x7", "one band", "several bands", "many channels", "maps beyond one walk"]
)
def test_threads_change_no_bit(name, form, isa):
    conv = CONVS[name]
    tensors, before, results = conv.tensors(form=form), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(_wgrad(conv, *tensors, _some(conv.outputs, conv.outputs)))
    finally:
        torch.set_num_threads(before)
    for dw, db in results[1:]:
        assert torch.equal(dw, results[0][0])
        assert torch.equal(db, results[0][1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["vectors that pair with none", "maps beyond one walk"])
def test_active_channels_far_apart(name, dtype, isa, poison):
    """Vectors of channels_last between which others are skipped, the first and the last of all."""
    conv = CONVS[name]
    tensors = conv.tensors(dtype, "last")
    for index in ([0, 70], [17, 71], [5, 38, 39, 64], [71]):
        index = torch.tensor(index, dtype=torch.int32)
        _assert_right(conv, tensors, index, *_wgrad(conv, *tensors, index))


@pytest.mark.parametrize("form", ["contiguous", "last"])
def test_long_sums_keep_their_precision(form, isa):
    """A running sum in fp32 would be off by hundreds of eps here."""
    conv = _conv(40, 9, (100, 100), padding=0)
    dy, x, weight = conv.tensors(form=form)
    dw, db = _wgrad(conv, dy.fill_(0.1), x.fill_(0.1), weight, _some(9, 9))
    length, value = dy.numel() / 9, float(dy.flatten()[0])
    torch.testing.assert_close(dw, torch.full_like(dw, length * value**2), rtol=2e-6, atol=0)
    torch.testing.assert_close(db, torch.full_like(db, length * value), rtol=2e-6, atol=0)


@pytest.mark.parametrize("form", ["contiguous", "last"])
@pytest.mark.parametrize("name", ["7x7", "several bands"])
def test_what_is_not_finite_stays_in_its_channel(name, form, isa):
    conv = CONVS[name]
    dy, x, weight = conv.tensors(form=form)
    clean, _ = _wgrad(conv, dy, x, weight, _some(conv.outputs, conv.outputs))
    x[:, 1] = torch.inf
    dw, _ = _wgrad(conv, dy, x, weight, _some(conv.outputs, conv.outputs))
    others = [c for c in range(conv.outputs) if c != 1]
    assert torch.equal(dw[others], clean[others])
    assert not dw[1].isfinite().any()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["7x7", "multiplier", "sequence"])
def test_the_specification_agrees(name, form):
    conv = CONVS[name]
    dy, x, weight = conv.tensors(torch.float64, form)
    index = torch.full((conv.outputs,), -1, dtype=torch.int32)
    index[:5] = _some(conv.outputs, 5)
    arguments = (dy, x, weight, lists(index, torch.tensor(5)), True, *conv.window)
    expected = reference.depthwise_wgrad(*arguments)
    ours = backends.TABLE["depthwise_wgrad", "native"](*arguments)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["strided", "expanded dy", "last"])
def test_strided_views_are_read_in_place(form):
    conv = CONVS["one band"]
    tensors, index = conv.tensors(form=form), _some(10, 4)
    _wgrad(conv, *tensors, index)
    with torch.profiler.profile(profile_memory=True) as profile:
        dw, db = _wgrad(conv, *tensors, index)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())
    assert allocated <= dw.nbytes + db.nbytes + 256
    assert not {"aten::copy_", "aten::contiguous"} & {e.key for e in profile.key_averages()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", ["contiguous", "last", "strided"])
@pytest.mark.parametrize("name", ["7x7", "multiplier", "sequence"])
def test_opcheck(name, form, bias):
    conv = CONVS[name]
    arguments = (*conv.tensors(form=form), _some(conv.outputs, 4), 3, *conv.window, bias)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    op = torch.ops.neq_kernels.depthwise_wgrad.default
    torch.library.opcheck(op, arguments, test_utils=tests)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("dy: expected float32, float64, float16 or bf", {"dy": torch.ones(2, 4, 5, 5).int()}),
        ("stride: expected a number for each of 1 or 2", {"dy": torch.ones(2, 4)}),
        ("stride: expected a number for each of 1 or 2", {"dy": torch.ones(2, 4, 5, 5, 5)}),
        ("padding: expected a number for each of 1 or 2", {"padding": [1]}),
        ("x: expected dy's dtype", {"x": torch.ones(2, 4, 5, 5).double()}),
        ("x: expected dy's batch of 2, got 3", {"x": torch.ones(3, 4, 5, 5)}),
        ("x: expected channels that divide dy's 4", {"x": torch.ones(2, 3, 5, 5)}),
        ("dy: expected size 6 in spatial dimension 1", {"x": torch.ones(2, 4, 5, 6)}),
        ("dw: expected shape [4, 1, ...]", {"weight": torch.ones(4, 2, 3, 3)}),
        ("window: expected stride and dilation of at least 1", {"stride": [0, 1]}),
        ("width: expected 0 to 4", {"index": torch.arange(5, dtype=torch.int32), "width": 5}),
        ("index: expected a contiguous int32 list", {"index": torch.tensor([0, 2])}),
        ("index: expected rising channels in [0, 4)", {"index": torch.tensor([1, 4]).int()}),
    ],
)
def test_bad_arguments_are_named(message, changes):
    good = {
        "dy": torch.ones(2, 4, 5, 5), "x": torch.ones(2, 4, 5, 5),
        "weight": torch.ones(4, 1, 3, 3), "index": torch.tensor([0, 2]).int(), "width": 2,
        "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "bias": True,
    }  # fmt: skip
    with pytest.raises(RuntimeError) as error:
        torch.ops.neq_kernels.depthwise_wgrad(**{**good, **changes})
    assert message in str(error.value)
    assert str(error.value).startswith("depthwise_wgrad: ")
