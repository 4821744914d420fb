"""The native input gradient from active channels against a dense backward in fp64 whose dY is zero
in the others."""

import pytest
import torch
from test_conv_wgrad_rows import CONVS, DTYPES, SMALL_WINDOWS, close, isa, sets, tensors  # noqa: F401

from neq_kernels import backends, native, reference
from neq_kernels.active import lists

pytestmark = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))

MORE = {
    "rows beyond a thousand positions": (1, 3, 4, (2, 2100), (2, 3), (1, 1), (1, 1), (1, 1)),
    "a long sequence": (2, 9, 4, (2500,), (3,), (2,), (1,), (4,)),
    "many channels at few positions": (3, 130, 20, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
    "a stride, and inputs that nobody reads": (2, 33, 6, (13, 12), (1, 1), (3, 2), (0, 0), (1, 1)),
    "more padding than input": (2, 9, 4, (4, 4), (3, 3), (1, 1), (5, 4), (1, 1)),
    "outputs of padding alone": (2, 9, 4, (2, 1), (2, 1), (3, 3), (4, 1), (1, 1)),
    "weights further apart than inputs": (1, 10, 3, (30, 30), (3, 3), (7, 8), (1, 1), (9, 11)),
}  # fmt: skip
ALL = CONVS | MORE


def exact(dy, x, weight, channels, window):
    """dX where no frozen channel of dY has been read."""
    masked = torch.zeros_like(dy, dtype=torch.float64)
    active = channels.index.long()
    masked[:, active] = dy[:, active].double()
    dx, _, _ = torch.ops.aten.convolution_backward(
        masked, x.double(), weight.double(), None, *window, False,
        [0] * (dy.dim() - 2), 1, [True, False, False],
    )  # fmt: skip
    return dx


def dgrad(dy, x, weight, channels, window, last=False):
    return torch.ops.neq_kernels.conv_dgrad(
        dy, weight, channels.padded, channels.count, list(x.shape[2:]), *window, last
    )


def terms(channels, weight):
    return max(channels.count * weight[0, 0].numel(), 1)


@pytest.mark.parametrize("form", ["contiguous", "last", "strided"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("conv", ALL.values(), ids=ALL)
def test_active_channels(conv, dtype, form, isa):  # noqa: F811
    dy, x, weight, window = tensors(conv, dtype, form)
    for channels in sets(dy.shape[1]):
        expected = exact(dy, x, weight, channels, window)
        for last in (False, True) if dy.dim() == 4 else (False,):
            dx = dgrad(dy, x, weight, channels, window, last)
            assert dx.dtype == dtype
            assert dx.shape == x.shape
            memory_format = torch.channels_last if last else torch.contiguous_format
            assert dx.is_contiguous(memory_format=memory_format)
            close(dx, expected, terms(channels, weight), dtype)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4, 5, 7])
def test_small_windows(size, last):
    """Every one of them beside a usual one, along either dimension: whatever overlaps at a border,
    or is left out there, shows in a sum."""
    for kernel, stride, padding, dilation in SMALL_WINDOWS:
        if size + 2 * padding <= dilation * (kernel - 1):
            continue
        for turn in (1, -1):
            per_axis = ((size, 4), (kernel, 3), (stride, 1), (padding, 1), (dilation, 1))
            dy, x, weight, window = tensors((3, 9, 2, *(a[::turn] for a in per_axis)))
            channels = lists(torch.tensor([0, 1], dtype=torch.int32), torch.tensor(2))
            dx = dgrad(dy, x, weight, channels, window, last)
            close(dx, exact(dy, x, weight, channels, window), terms(channels, weight), dy.dtype)


@pytest.mark.parametrize("form", ["contiguous", "last"])
@pytest.mark.parametrize("conv", ALL.values(), ids=ALL)
def test_the_reference_agrees(conv, form):
    dy, x, weight, window = tensors(conv, form=form)
    last = form == "last" and dy.dim() == 4
    for channels in sets(dy.shape[1]):
        expected = reference.conv_dgrad(dy, weight, channels, x.shape[2:], *window, last)
        found = dgrad(dy, x, weight, channels, window, last)
        assert found.stride() == expected.stride()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
def test_threads_change_no_bit(conv, last):
    dy, x, weight, window = tensors(conv)
    channels = next(iter(sets(dy.shape[1])))
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(dgrad(dy, x, weight, channels, window, last and dy.dim() == 4))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("conv", ["3x3", "1x1, rows that lie together", "stride 2"])
def test_frozen_channels_are_not_read(conv, last, value, isa):  # noqa: F811
    dy, x, weight, window = tensors(CONVS[conv], form="last" if last else "contiguous")
    for channels in sets(dy.shape[1]):
        expected = dgrad(dy, x, weight, channels, window, last)
        frozen = channels.frozen
        spoiled, other = dy.clone(), weight.clone()
        spoiled[:, frozen] = value
        other[frozen] = value
        assert torch.equal(dgrad(spoiled, x, other, channels, window, last), expected)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_rounded_to_nearest(dtype, stride, last, isa):  # noqa: F811
    """Of any size, and where they are no numbers."""
    torch.manual_seed(0)
    dy = (torch.randn(3, 5, 9, 10) * torch.logspace(-6, 4, 10)).to(dtype)
    dy[0, 1, 0, :5], dy[0, 1, 1, :3] = torch.nan, torch.inf
    weight = torch.randn(5, 21, 1, 1).to(dtype)
    active = torch.tensor([1, 3], dtype=torch.int32)
    sums = torch.einsum("nohw,oc->nchw", dy[:, [1, 3]].double(), weight[[1, 3], :, 0, 0].double())
    size = [n * stride for n in (9, 10)]
    expected = torch.zeros(3, 21, *size, dtype=dtype)
    expected[:, :, ::stride, ::stride] = sums.float().to(dtype)
    dx = torch.ops.neq_kernels.conv_dgrad(
        dy, weight, active, 2, size, [stride] * 2, [0, 0], [1, 1], last
    )
    assert torch.equal(dx.isnan(), expected.isnan())
    # fp32 adds in another order than fp64: now and then the last place differs.
    torch.testing.assert_close(dx, expected, rtol=torch.finfo(dtype).eps, atol=0, equal_nan=True)


@pytest.mark.parametrize("form", ["contiguous", "last"])
@pytest.mark.parametrize("conv", ["3x3", "1x1, rows that lie together", "stride 2"])
def test_nothing_is_read_beyond_the_tensors(conv, form):
    """What lies around dy in memory is not a number; what is multiplied by zero must be."""
    dy, x, weight, window = tensors(CONVS[conv], form=form)
    inside = []
    for t in (dy, weight):
        memory = torch.full([s + 2 for s in t.shape], torch.nan)
        if form == "last":
            memory = memory.contiguous(memory_format=torch.channels_last)
        inside.append(memory[tuple(slice(1, -1) for _ in t.shape)].copy_(t))
    channels = next(iter(sets(dy.shape[1])))
    dx = dgrad(inside[0], x, inside[1], channels, window, form == "last")
    close(dx, exact(dy, x, weight, channels, window), terms(channels, weight), dy.dtype)


def test_no_active_channel_gives_zeros():
    dy, x, weight, window = tensors(CONVS["3x3"])
    none = lists(torch.full((dy.shape[1],), -1, dtype=torch.int32), torch.tensor(0))
    for width in (0, 3):
        dx = torch.ops.neq_kernels.conv_dgrad(
            dy, weight, none.padded, width, list(x.shape[2:]), *window, False
        )
        assert torch.equal(dx, torch.zeros_like(x))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_no_output_gives_zeros(stride):
    index = torch.tensor([0], dtype=torch.int32)
    dx = torch.ops.neq_kernels.conv_dgrad(
        torch.zeros(2, 1, 0), torch.ones(1, 24, 3), index, 1, [10], [stride], [0], [63], False
    )
    assert torch.equal(dx, torch.zeros(2, 24, 10))


@pytest.mark.parametrize("form", ["contiguous", "last"])
def test_the_direct_way_takes_it(form):
    dy, x, weight, window = tensors(CONVS["stride 2"], form=form)
    with torch.profiler.profile() as profile:
        for channels in sets(dy.shape[1]):
            arguments = (dy, x, weight, channels, True, *window, 1)
            found = backends.direct("conv_backward", "cpu", dy.dtype, 2)(*arguments)
            assert found[0].stride() == x.stride()
            for a, b in zip(found, reference.conv_backward(*arguments), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert "neq_kernels::conv_dgrad" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("last", [False, True])
def test_opcheck(last):
    dy, x, weight, window = tensors(CONVS["3x3"])
    channels = next(iter(sets(dy.shape[1])))
    arguments = (dy, weight, channels.padded, channels.count, list(x.shape[2:]), *window, last)
    torch.library.opcheck(torch.ops.neq_kernels.conv_dgrad.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dy": torch.zeros(2, 4, 6, 7)}, "dy: expected size 6 in spatial dimension 1"),
        ({"weight": torch.zeros(5, 3, 3, 3)}, r"weight: expected shape \[4, 3, ...\], got \[5, 3"),
        ({"weight": torch.zeros(4, 3, 3)}, "as many dimensions as dy"),
        ({"weight": torch.zeros(4, 3, 3, 3).double()}, "weight: expected dy's dtype"),
        ({"weight": torch.zeros(4, 3, 3, 0)}, "weight: expected a kernel size of at least 1"),
        ({"index": torch.tensor([2, 1], dtype=torch.int32)}, "index: expected rising channels"),
        ({"index": torch.tensor([1, 9], dtype=torch.int32)}, "index: expected rising channels"),
        ({"index": torch.tensor([0, 1])}, "index: expected a contiguous int32 list"),
        ({"width": 5}, "index: expected a contiguous int32 list"),
        ({"size": [6]}, "a size of as many dimensions as dy"),
        ({"size": [6, -1]}, "size: expected sizes of at least 0, got -1"),
        ({"size": [6, 9]}, "dy: expected size 9 in spatial dimension 1, which dx's 9"),
        ({"stride": [0, 1]}, "expected stride and dilation of at least 1"),
        ({"stride": [1]}, "stride: expected a number for each of"),
        ({"dilation": [1 << 40, 1]}, "below 2\\^31"),
    ],
)
def test_bad_input(change, message):
    arguments = {
        "dy": torch.zeros(2, 4, 6, 6), "weight": torch.zeros(4, 3, 3, 3),
        "index": torch.tensor([0, 2], dtype=torch.int32), "width": 2, "size": [6, 6],
        "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "channels_last": False,
    } | change  # fmt: skip
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        torch.ops.neq_kernels.conv_dgrad(*arguments.values())


def test_channels_last_needs_two_dimensions():
    dy, x, weight, window = tensors(CONVS["one dimension"])
    channels = next(iter(sets(dy.shape[1])))
    with pytest.raises(RuntimeError, match="channels_last: expected 2 spatial dimensions"):
        dgrad(dy, x, weight, channels, window, last=True)
