"""The native operators from Python: random right calls against the reference, wrong ones raise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neq_kernels import native, reference

pytestmark = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
REFUSED = (RuntimeError, ValueError, TypeError)
some = settings(max_examples=80, deadline=None)
ops = torch.ops.neq_kernels


def quarters(draw, shape, dtype):
    """Numbers that every dtype holds, in any order of the dimensions, gaps included; sums of their
    products are exact in fp32."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    order = draw(st.permutations(range(len(shape))))
    step = draw(st.integers(1, 2))
    tensor = torch.randint(
        -8, 9, [*(shape[d] for d in order), step], generator=generator, dtype=torch.int32
    )
    inverse = sorted(range(len(shape)), key=lambda d: order[d])
    return (tensor / 4).to(dtype)[..., 0].permute(inverse)


def shapes(least=1, most=4):
    return st.lists(st.integers(0, 9), min_size=least, max_size=most)


def chosen(draw, channels):
    """Active channels in rising order, perhaps with padding."""
    flags = draw(st.lists(st.booleans(), min_size=channels, max_size=channels))
    active = [c for c, flag in enumerate(flags) if flag]
    padding = draw(st.integers(0, channels - len(active)))
    return torch.tensor(active + [-1] * padding, dtype=torch.int32), len(active)


@given(st.data())
@some
def test_pack_channels(data):
    shape = data.draw(shapes())
    dim = data.draw(st.integers(0, len(shape) - 1))
    dy = quarters(data.draw, shape, data.draw(st.sampled_from(DTYPES)))
    index, _ = chosen(data.draw, shape[dim])
    arguments = (dy, index, index.numel(), dim)
    packed, sums = ops.pack_channels(*arguments, True)
    if shape[dim]:
        expected = reference.pack_channels(dy.double(), *arguments[1:], True)
        assert torch.equal(packed.double(), expected[0])
        assert torch.equal(sums, expected[1].to(dy.dtype))


@given(st.data())
@some
def test_conv_wgrad_rows(data):
    draw = data.draw
    dims = draw(st.integers(1, 2))
    numbers = [draw(st.tuples(*[st.integers(low, high)] * dims)) for low, high in
               ((1, 4), (1, 3), (0, 3), (1, 3), (0, 9))]  # fmt: skip
    kernel, stride, padding, dilation, size = map(list, numbers)
    batch, inputs, outputs = (draw(st.integers(0, most)) for most in (5, 20, 9))
    room = zip(size, kernel, stride, padding, dilation, strict=True)
    out = [max(0, (n + 2 * p - d * (k - 1) - 1) // s + 1) for n, k, s, p, d in room]
    dtype = draw(st.sampled_from(DTYPES))
    x = quarters(draw, [batch, inputs, *size], dtype)
    dy = quarters(draw, [batch, outputs, *out], dtype)
    index, count = chosen(draw, outputs)

    weight = torch.empty(outputs, inputs, *kernel)
    strides = list(weight.stride())
    if draw(st.booleans()):  # outputs as neighbours in memory
        strides = [1, *(max(outputs, 1) * stride for stride in strides[1:])]
    rows, sums = ops.conv_wgrad_rows(
        dy, x, index, index.numel(), weight.shape, strides, stride, padding, dilation, True
    )
    assert (rows.shape, rows.stride()) == (weight.shape, tuple(strides))
    active = index[:count].long()
    frozen = torch.ones(outputs, dtype=torch.bool).index_fill_(0, active, False)
    assert not rows[frozen].any()
    assert not sums[frozen].any()
    if count and x.numel() and dy.numel():
        packed = dy.double()[:, active]
        weight = torch.empty(count, inputs, *kernel, dtype=torch.float64)
        geometry = stride, padding, dilation
        expected = reference.conv_gradients(packed, x.double(), weight, geometry, 1, (False, True))[
            1
        ]
        assert torch.equal(rows[active], expected.to(dtype))
        assert torch.equal(sums[active], packed.transpose(0, 1).flatten(1).sum(1).to(dtype))
    else:
        assert not rows.any()


@given(st.data())
@some
def test_conv_dgrad(data):
    draw = data.draw
    dims = draw(st.integers(1, 2))
    numbers = [draw(st.tuples(*[st.integers(low, high)] * dims)) for low, high in
               ((1, 4), (1, 3), (0, 3), (1, 3), (0, 9))]  # fmt: skip
    kernel, stride, padding, dilation, size = map(list, numbers)
    batch, inputs, outputs = (draw(st.integers(0, most)) for most in (5, 20, 9))
    room = zip(size, kernel, stride, padding, dilation, strict=True)
    out = [max(0, (n + 2 * p - d * (k - 1) - 1) // s + 1) for n, k, s, p, d in room]
    dtype = draw(st.sampled_from(DTYPES))
    weight = quarters(draw, [outputs, inputs, *kernel], dtype)
    dy = quarters(draw, [batch, outputs, *out], dtype)
    index, count = chosen(draw, outputs)
    last = dims == 2 and draw(st.booleans())

    window = stride, padding, dilation
    dx = ops.conv_dgrad(dy, weight, index, index.numel(), size, *window, last)
    assert dx.shape == (batch, inputs, *size)
    assert dx.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    if count and dx.numel() and dy.numel():
        active = index[:count].long()
        packed, rows = dy.double()[:, active], weight.double()[active]
        x = torch.empty(batch, inputs, *size, dtype=torch.float64)
        expected, _ = reference.conv_gradients(packed, x, rows, window, 1, (True, False))
        assert torch.equal(dx, expected.to(dtype))
    else:
        assert not dx.any()


@given(st.data())
@some
def test_channel_moments(data):
    shape = data.draw(shapes())
    dim = data.draw(st.integers(0, len(shape) - 1))
    per_sample = dim > 0 and data.draw(st.booleans())
    a, b = (quarters(data.draw, shape, data.draw(st.sampled_from(DTYPES))) for _ in "ab")
    expected = reference.channel_moments(a, b, dim, per_sample)
    assert torch.equal(ops.channel_moments(a, b, dim, per_sample), expected)


@given(st.data())
@some
def test_compact(data):
    sizes = data.draw(shapes())
    dtype = data.draw(st.sampled_from([torch.bool, torch.float32, torch.float64]))
    layers = [quarters(data.draw, [n], torch.float32).to(dtype).contiguous() for n in sizes]
    epsilon = data.draw(st.sampled_from([0.0, 0.25, 1.0]))
    assert torch.equal(ops.compact(layers, epsilon), reference.compact(layers, epsilon))


@given(st.data())
@some
def test_row_steps(data):
    shape, adam = data.draw(shapes()), data.draw(st.booleans())
    dim = data.draw(st.integers(0, len(shape) - 1))
    dtype = data.draw(st.sampled_from(DTYPES[:2]))
    tensors = [[quarters(data.draw, shape, dtype)] for _ in range(4)]
    tensors[3][0] = tensors[3][0].abs()
    index, count = chosen(data.draw, shape[dim])
    rows = ([index], [count], [dim])
    flags = [data.draw(st.booleans()) for _ in range(3)]
    exact = [[tensor.double().clone()] for (tensor,) in tensors]
    if adam:
        options = (0.01, 0.9, 0.99, 0.5, 0.1, flags[0], False, flags[1])
        ops.row_adamw(*tensors, [], [torch.tensor(1.0)], *rows, *options)
        reference.row_adamw(*exact, [], [torch.tensor(1.0)], *rows, *options)
    else:
        options = (0.1, 0.9 if flags[2] else 0.0, 0.0, 0.1, flags[0], flags[1])
        ops.row_sgd(*tensors[:3], *rows, *options)
        reference.row_sgd(*exact[:3], *rows, *options)
    for (got,), (expected,) in zip(tensors, exact, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@given(st.data())
@some
def test_depthwise_wgrad(data):
    dims = data.draw(st.integers(1, 2))
    draw = lambda low, high: [data.draw(st.integers(low, high)) for _ in range(dims)]  # noqa: E731
    window, kernel, size = (draw(1, 3), draw(0, 2), draw(1, 2)), draw(1, 3), draw(5, 9)
    inputs, multiplier = data.draw(st.integers(2, 9)), data.draw(st.integers(1, 2))
    dtype, batch = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(1, 3))
    x = quarters(data.draw, [batch, inputs, *size], dtype)
    weight = torch.zeros(inputs * multiplier, 1, *kernel, dtype=dtype)
    run = (torch.conv1d, torch.conv2d)[dims - 1]
    out = run(x.double(), weight.double(), None, *window, inputs).shape
    dy = quarters(data.draw, out, dtype)
    index, count = chosen(data.draw, out[1])
    dw, db = ops.depthwise_wgrad(dy, x, weight, index, index.numel(), *window, True)
    exact = torch.ops.aten.convolution_backward(
        dy.double(), x.double(), weight.double(), [out[1]], *window, False, [0] * dims, inputs,
        [False, True, True],
    )  # fmt: skip
    active = torch.zeros(out[1], dtype=torch.bool)
    active[index[:count].long()] = True
    for got, expected in zip((dw, db), exact[1:], strict=True):
        frozen = ~active.view(-1, *[1] * (expected.dim() - 1))
        assert torch.equal(got, expected.masked_fill(frozen, 0).to(dtype))


WILD = st.sampled_from([-(2**63), -7, -1, 10, 2**31, 2**32, 2**62, 2**63 - 1])
WRONG_INDEX = st.sampled_from(
    [
        torch.tensor([1, 0], dtype=torch.int32),
        torch.tensor([2, 2], dtype=torch.int32),
        torch.tensor([-1, 1], dtype=torch.int32),
        torch.tensor([0, 4], dtype=torch.int32),
        torch.tensor([-2, 0], dtype=torch.int32),
        torch.tensor([0, 1]),
        torch.tensor([[0, 1]], dtype=torch.int32),
        torch.tensor([0], dtype=torch.int32),
        torch.arange(4, dtype=torch.int32)[::2],
        torch.tensor([0.0, 1.0]),
    ]
)


@given(WILD, WRONG_INDEX)
@some
def test_wrong_arguments_raise(wild, wrong):
    dy, right = torch.zeros(2, 4, 5), torch.tensor([0, 1], dtype=torch.int32)
    weight, unit = torch.zeros(4, 1, 3), ([1], [1], [1])
    step = (0.1, 0.0, 0.0, 0.0, False, False)
    before = [torch.ones(4, 5)]
    calls = [
        lambda: ops.pack_channels(dy, wrong, 2, 1, True),
        lambda: ops.pack_channels(dy, right, wild, 1, True),
        lambda: ops.pack_channels(dy, right, 2, wild if wild != -1 else 3, True),
        lambda: ops.pack_channels(dy.int(), right, 2, 1, True),
        lambda: ops.channel_moments(dy, dy, wild if wild != -1 else 3, False),
        lambda: ops.channel_moments(dy, dy[:1], 1, False),
        lambda: ops.channel_moments(dy, dy, 0, True),
        lambda: ops.compact([dy], 0.0),
        lambda: ops.compact([dy[0, 0]], float("nan")),
        lambda: ops.compact([], 0.0),
        lambda: ops.depthwise_wgrad(dy, dy, weight, wrong, 2, *unit, True),
        lambda: ops.depthwise_wgrad(dy, dy, weight, right, wild, *unit, True),
        lambda: ops.depthwise_wgrad(dy, dy, weight, right, 2, [wild], [1], [1], True),
        lambda: ops.depthwise_wgrad(dy, dy, weight, right, 2, [1], [wild], [1], True),
        lambda: ops.depthwise_wgrad(dy, dy, weight, right, 2, [1, 1], [1], [1], True),
        lambda: ops.row_sgd(before, before, [], [wrong], [2], [0], *step),
        lambda: ops.row_sgd(before, [dy], [], [right], [2], [0], *step),
        lambda: ops.row_sgd(before, before, [], [right], [2], [], *step),
    ]
    for call in calls:
        with pytest.raises(REFUSED):
            call()
    assert torch.equal(before[0], torch.ones(4, 5))
