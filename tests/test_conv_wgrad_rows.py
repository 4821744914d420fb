"""The native kernel for few active channels of a convolution against a dense backward in fp64."""

import pytest
import torch

import neq_kernels as neq
from neq_kernels import backends, native, reference
from neq_kernels.active import lists

pytestmark = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# batch, inputs, outputs, size, kernel, stride, padding, dilation
CONVS = {
    "3x3": (5, 19, 9, (8, 9), (3, 3), (1, 1), (1, 1), (1, 1)),
    "1x1, rows that lie together": (3, 40, 7, (7, 7), (1, 1), (1, 1), (0, 0), (1, 1)),
    "1x1, padded": (2, 5, 4, (6, 5), (1, 1), (1, 1), (1, 2), (1, 1)),
    "planes below a vector, many samples": (70, 6, 5, (3, 3), (3, 3), (1, 1), (1, 1), (1, 1)),
    "a plane beyond a chunk": (2, 3, 4, (60, 41), (3, 3), (1, 1), (1, 1), (1, 1)),
    "more channels than are staged": (2, 300, 11, (14, 14), (3, 3), (1, 1), (1, 1), (1, 1)),
    "stride 2": (3, 17, 6, (14, 13), (3, 3), (2, 2), (1, 1), (1, 1)),
    "stride beyond the kernel": (2, 9, 5, (13, 20), (3, 2), (5, 7), (2, 0), (2, 1)),
    "dilation that skips a phase": (2, 6, 5, (15, 15), (3, 3), (2, 2), (2, 2), (2, 2)),
    "large kernel": (1, 8, 20, (20, 20), (7, 5), (1, 2), (3, 2), (1, 1)),
    "one dimension": (4, 21, 10, (50,), (5,), (2,), (2,), (1,)),
    "one position": (9, 12, 8, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
}  # fmt: skip


def tensors(conv, dtype=torch.float32, form="contiguous"):
    batch, inputs, outputs, size, kernel, *window = conv
    torch.manual_seed(0)
    x = torch.randn(batch, inputs, *size).to(dtype)
    weight = torch.randn(outputs, inputs, *kernel).to(dtype)
    run = (torch.conv1d, torch.conv2d)[len(size) - 1]
    dy = torch.randn(run(x.double(), weight.double(), None, *window).shape).to(dtype)
    if form == "last" and len(size) == 2:
        x, dy, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy, weight))
    elif form == "strided":
        x, dy = (t.repeat_interleave(2, -1)[..., ::2] for t in (x, dy))
    return dy, x, weight, [list(numbers) for numbers in window]


def exact(dy, x, weight, window):
    _, dw, db = torch.ops.aten.convolution_backward(
        dy.double(), x.double(), weight.double(), [weight.shape[0]], *window, False,
        [0] * (dy.dim() - 2), 1, [False, True, True],
    )  # fmt: skip
    return dw, db


def sets(outputs):
    """One active channel, some and all, the list padded as layers pad it."""
    for count in {1, (outputs + 1) // 2, outputs}:
        padded = torch.full((outputs,), -1, dtype=torch.int32)
        padded[:count] = torch.randperm(outputs)[:count].sort().values.int()
        yield lists(padded, torch.tensor(count))


def close(found, expected, terms, dtype):
    """Contract 1: 4 eps sqrt(terms), of products of normal numbers; in fp64 the reference errs as
    much."""
    error = (found.double() - expected).abs().max().item()
    rounding = torch.finfo(dtype).eps * expected.abs().max().item()
    both = 3 if dtype == torch.float64 else 1
    assert error <= both * 4 * 4 * torch.finfo(found.dtype).eps * terms**0.5 + rounding


@pytest.fixture(params=["scalar", "avx2", "avx512"])
def isa(request):
    before = native.cpu_isa()
    try:
        native.set_cpu_isa(request.param)
    except (RuntimeError, ValueError) as reason:
        pytest.skip(str(reason))
    yield request.param
    native.set_cpu_isa(before)


@pytest.mark.parametrize("form", ["contiguous", "last", "strided"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
def test_active_rows(conv, dtype, form, isa):
    dy, x, weight, window = tensors(conv, dtype, form)
    dw, db = exact(dy, x, weight, window)
    terms = dy.numel() // dy.shape[1]
    for channels in sets(dy.shape[1]):
        arguments = (dy, x, weight, channels, True, *window, 1)
        rows, sums = backends.direct("conv_wgrad", "cpu", dtype, dy.dim() - 2)(*arguments)
        frozen = channels.frozen
        assert rows.shape == weight.shape
        assert rows.stride() == weight.stride()
        assert (rows[frozen] == 0).all()
        assert (sums[frozen] == 0).all()
        active = channels.index.long()
        close(rows[active], dw[active], terms, dtype)
        close(sums[active], db[active], terms, dtype)


@pytest.mark.parametrize("form", ["contiguous", "last"])
def test_both_gradients_of_active_channels(form):
    dy, x, weight, window = tensors(CONVS["3x3"], form=form)
    for channels in sets(dy.shape[1]):
        arguments = (dy, x, weight, channels, True, *window, 1)
        found = backends.direct("conv_backward", "cpu", dy.dtype, 2)(*arguments)
        expected = reference.conv_backward(*arguments)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


SMALL_WINDOWS = [
    (kernel, stride, padding, dilation)
    for kernel in (1, 2, 3, 4)
    for stride in (1, 2, 3)
    for padding in (0, 1, 2, 3)
    for dilation in (1, 2)
]


@pytest.mark.parametrize("form", ["contiguous", "last"])
@pytest.mark.parametrize("size", [1, 2, 4, 5, 7])
def test_small_windows(size, form):
    """Every one of them beside a usual one, along either dimension: whatever overlaps at a border,
    or is left out there, shows in a sum."""
    for kernel, stride, padding, dilation in SMALL_WINDOWS:
        if size + 2 * padding <= dilation * (kernel - 1):
            continue
        for turn in (1, -1):
            per_axis = ((size, 4), (kernel, 3), (stride, 1), (padding, 1), (dilation, 1))
            dy, x, weight, window = tensors((3, 9, 2, *(a[::turn] for a in per_axis)), form=form)
            dw, db = exact(dy, x, weight, window)
            channels = lists(torch.tensor([0, 1], dtype=torch.int32), torch.tensor(2))
            direct = backends.direct("conv_wgrad", "cpu", dy.dtype, 2)
            rows, sums = direct(dy, x, weight, channels, True, *window, 1)
            terms = dy.numel() // 2
            close(rows, dw, terms, dy.dtype)
            close(sums, db, terms, dy.dtype)


@pytest.mark.parametrize("form", ["contiguous", "last"])
@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
def test_threads_change_no_bit(conv, form):
    dy, x, weight, window = tensors(conv, form=form)
    channels = next(iter(sets(dy.shape[1])))
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            arguments = (dy, x, weight, channels, True, *window, 1)
            found.append(backends.direct("conv_wgrad", "cpu", dy.dtype, dy.dim() - 2)(*arguments))
    finally:
        torch.set_num_threads(threads)
    for rows, sums in found[1:]:
        assert torch.equal(rows, found[0][0])
        assert torch.equal(sums, found[0][1])


@pytest.mark.parametrize("inside", [("dy",), ("x",), ("dy", "x")], ids=" ".join)
@pytest.mark.parametrize("form", ["contiguous", "last"])
@pytest.mark.parametrize("conv", ["3x3", "1x1, rows that lie together"])
def test_nothing_is_read_beyond_the_tensors(conv, form, inside):
    """What lies around dy and x in memory is not a number; what is multiplied by zero must be."""
    dy, x, weight, window = tensors(CONVS[conv], form=form)
    dw, db = exact(dy, x, weight, window)
    operands = {"dy": dy, "x": x}
    for name in inside:
        t = operands[name]
        memory = torch.full([s + 2 for s in t.shape], torch.nan)
        if form == "last":
            memory = memory.contiguous(memory_format=torch.channels_last)
        operands[name] = memory[tuple(slice(1, -1) for _ in t.shape)].copy_(t)
    channels = next(iter(sets(dy.shape[1])))
    direct = backends.direct("conv_wgrad", "cpu", dy.dtype, 2)
    rows, sums = direct(*operands.values(), weight, channels, True, *window, 1)
    active, terms = channels.index.long(), dy.numel() // dy.shape[1]
    close(rows[active], dw[active], terms, dy.dtype)
    close(sums[active], db[active], terms, dy.dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dy": torch.zeros(2, 4, 6, 7)}, "dy: expected size 6 in spatial dimension 1"),
        ({"x": torch.zeros(3, 3, 6, 6)}, "x: expected dy's batch of 2, got 3"),
        ({"x": torch.zeros(2, 3, 6)}, "x: expected dy's dtype 0 and 4 dimensions"),
        ({"x": torch.zeros(2, 3, 6, 6).double()}, "x: expected dy's dtype"),
        ({"index": torch.tensor([2, 1], dtype=torch.int32)}, "index: expected rising channels"),
        ({"index": torch.tensor([1, 9], dtype=torch.int32)}, "index: expected rising channels"),
        ({"index": torch.tensor([0, 1])}, "index: expected a contiguous int32 list"),
        ({"width": 5}, "index: expected a contiguous int32 list"),
        ({"dw_size": [4, 3, 3]}, "dw_stride: expected 3 numbers like dw_size, got 4"),
        ({"dw_size": [4, 3, 3], "dw_stride": [9, 3, 1]}, "dw: expected dy's dtype 0 and 4 dim"),
        ({"dw_size": [2, 3, 3, 3]}, "dw: expected shape \\[4, 3, ...\\]"),
        ({"dw_size": [4, 3, 3, 0]}, "expected a kernel size of at least 1"),
        ({"dw_stride": [0, 9, 3, 1]}, "dw: expected memory of its own"),
        ({"stride": [0, 1]}, "expected stride and dilation of at least 1"),
        ({"stride": [1]}, "stride: expected a number for each of"),
        ({"dilation": [1 << 40, 1]}, "below 2\\^31"),
    ],
)
def test_bad_input(change, message):
    arguments = {
        "dy": torch.zeros(2, 4, 6, 6), "x": torch.zeros(2, 3, 6, 6),
        "index": torch.tensor([0, 2], dtype=torch.int32), "width": 2,
        "dw_size": [4, 3, 3, 3], "dw_stride": [27, 9, 3, 1],
        "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "bias": True,
    } | change  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        torch.ops.neq_kernels.conv_wgrad_rows(*arguments.values())


def test_only_the_cpu_without_groups_goes_direct():
    assert backends.direct("conv_wgrad", "cuda", torch.float32, 2) is None
    assert backends.direct("conv_wgrad", "cpu", torch.float32, 3) is None
    with neq.backends.use("torch"):
        assert backends.direct("conv_wgrad", "cpu", torch.float32, 2) is None
    assert backends.direct("conv_wgrad", "cpu", torch.float32, 2) is not None
