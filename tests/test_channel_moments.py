"""channel_moments: the torch specification against exact sums, the native kernels against it."""

import math

import pytest
import torch
from test_pack_channels import LAYOUTS

from neq_kernels import backends, native, reference

needs_native = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def _native(a, b, dim=1, per_sample=False):
    return torch.ops.neq_kernels.channel_moments(a, b, dim, per_sample)


def _pair(layout, dtype, other=None):
    torch.manual_seed(0)
    a, dim = LAYOUTS[layout](lambda *shape: torch.randn(shape).to(dtype))
    b, _ = LAYOUTS[layout](lambda *shape: torch.randn(shape).to(other or dtype))
    return a, b, dim


def _assert_close(moments, a, b, dim, per_sample=False):
    """Every sum within the rounding of fp64, on the scale of what was added up."""
    assert moments.dtype == torch.float64
    exact = reference.channel_moments(a, b, dim, per_sample)
    scale = reference.channel_moments(a.abs(), b.abs(), dim, per_sample)
    assert moments.shape == exact.shape
    n = max(1, a.numel() // max(1, exact[0].numel()))
    assert ((moments - exact).abs() <= 4 * 2.0**-52 * n**0.5 * scale).all()


def _exact(a, b, dim):
    rows = [x.double().movedim(dim, 0).reshape(x.shape[dim], -1).tolist() for x in (a, b)]
    pairs = [(rows[0], rows[1]), (rows[0], rows[0]), (rows[1], rows[1])]
    return [
        [math.fsum(x * y for x, y in zip(*both, strict=True)) for both in zip(*rows, strict=True)]
        for rows in pairs
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((3, 5, 4, 2), 1), ((5, 4, 2), 0), ((3, 4, 5), -1), ((7, 5), -1), ((5,), -1), ((0, 5), 1)],
)
@pytest.mark.parametrize("chunk", [1, 30, 1 << 20])
def test_the_specification_is_exact_sums(monkeypatch, shape, dim, dtype, chunk):
    monkeypatch.setitem(reference.CHUNK, "cpu", chunk)
    torch.manual_seed(0)
    a, b = (torch.randn(shape).to(dtype) for _ in range(2))
    moments = reference.channel_moments(a, b, dim, False)
    exact = torch.tensor(_exact(a, b, dim), dtype=torch.float64).view(moments.shape)
    torch.testing.assert_close(moments, exact, rtol=1e-13, atol=1e-13)
    if dim % a.dim() == 0:
        return
    samples = reference.channel_moments(a, b, dim, True)
    assert samples.shape == (3, shape[0], shape[dim])
    torch.testing.assert_close(samples.sum(1), exact, rtol=1e-13, atol=1e-13)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_specification(layout, dtype, isa, poison):
    a, b, dim = _pair(layout, dtype)
    _assert_close(_native(a, b, dim), a, b, dim)
    if dim % a.dim():
        _assert_close(_native(a, b, dim, True), a, b, dim, per_sample=True)


@needs_native
@pytest.mark.parametrize("other", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["batch, tokens", "nchw", "channels_last", "transposed"])
def test_dtypes_may_differ(layout, dtype, other, isa, poison):
    a, b, dim = _pair(layout, dtype, other)
    _assert_close(_native(a, b, dim), a, b, dim)


@needs_native
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "batch, tokens"])
def test_each_tensor_may_lie_its_own_way(layout, isa, poison):
    a, b, dim = _pair(layout, torch.float32)
    wide = torch.randn(2 * b.shape[-1], *b.shape[:-1]).movedim(0, -1)[..., ::2]
    for other in (b.contiguous(), b[:1].expand_as(a), wide):
        _assert_close(_native(a, other, dim), a, other, dim)
        _assert_close(_native(other, a, dim, True), other, a, dim, per_sample=True)


@needs_native
@pytest.mark.parametrize("channels", [*range(1, 35), 63, 65, 127, 128, 129, 255, 257, 300, 1000])
def test_any_number_of_channels(channels, isa, poison):
    """Narrow rows are folded into wide ones, all rows end in a part of a vector."""
    for rows in (1, 7, 1031):
        a, b = torch.randn(2, rows, channels, dtype=torch.bfloat16).unbind()
        _assert_close(_native(a, b), a, b, 1)
        _assert_close(_native(a, b, 1, True), a, b, 1, per_sample=True)


@needs_native
@pytest.mark.parametrize("length", [*range(1, 36), 49, 196, 1023, 20000])
def test_any_length_of_planes(length, isa, poison):
    for dtype in (torch.float32, torch.float16):
        a, b = torch.randn(2, 3, 5, length).to(dtype).unbind()
        _assert_close(_native(a, b), a, b, 1)
        _assert_close(_native(a, b, 1, True), a, b, 1, per_sample=True)


@needs_native
@pytest.mark.parametrize("shape", [(6000, 70), (40, 70, 13, 13), (2, 3, 300_000), (4, 90_000)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_threads_change_no_bit(shape, per_sample, isa):
    a, b = torch.randn(2, *shape).unbind()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(_native(a, b, 1, per_sample))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[1], results[0])
    assert torch.equal(results[2], results[0])
    _assert_close(results[0], a, b, 1, per_sample)


@needs_native
@pytest.mark.parametrize("layout", ["tokens", "planes", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_millionth_shows_beside_a_large_mean(layout, dtype, isa):
    """The cosine of (m, m, ...) and the same with a few elements moved: sums in fp32, or products
    rounded to it, would be off by far more than the 1e-6 that is to be seen."""
    length, m = 400_000, 1000.0
    a = torch.full((length, 3), m, dtype=dtype)
    b = a.clone()
    step = torch.finfo(dtype).eps * 2048
    for channel, moved in enumerate((40, 80, 4000)):
        b[:moved, channel] += step
    exact = [
        reference.channel_moments(a[:, c : c + 1], b[:, c : c + 1], 1, False) for c in (0, 1, 2)
    ]
    exact = torch.cat(exact, 1)
    if layout != "tokens":
        a, b = (x.t().contiguous() for x in (a, b))
        a, b = (x.unsqueeze(0) for x in (a, b)) if layout == "planes" else (a.t(), b.t())
    moments = _native(a, b)
    torch.testing.assert_close(moments, exact, rtol=1e-13, atol=0)
    gap, expected = (1 - x[0] / (x[1].sqrt() * x[2].sqrt()) for x in (moments, exact))
    torch.testing.assert_close(gap, expected, rtol=0, atol=1e-12)


@needs_native
@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_neither_overflow_nor_vanish(scale, dtype, isa):
    a, b = (torch.randn(2, 50, 20) * scale).to(dtype).unbind()
    _assert_close(_native(a, b), a, b, 1)
    assert (_native(a, b)[1:] > 0).all()


@needs_native
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("layout", ["tokens", "nchw", "channels_last", "cropped nchw"])
def test_what_is_not_finite_stays_in_its_channel(layout, bad, isa):
    a, b, dim = _pair(layout, torch.float32)
    for place in range(a.shape[0]):
        spoilt = a.clone()
        spoilt.select(dim, 3)[place] = bad
        moments = _native(spoilt, b, dim)
        clean = _native(a, b, dim)
        channels = torch.arange(a.shape[dim]) != 3
        assert torch.equal(moments[:, channels], clean[:, channels])
        assert torch.equal(moments[2], clean[2])
        assert not moments[:2, 3].isfinite().any()


@needs_native
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "cropped nchw", "expanded"])
def test_strided_views_are_read_in_place(layout):
    a, b, dim = _pair(layout, torch.bfloat16)
    _native(a, b, dim)
    with torch.profiler.profile(profile_memory=True) as profile:
        moments = _native(a, b, dim)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())
    assert moments.nbytes <= allocated <= moments.nbytes + 256
    assert not {"aten::copy_", "aten::contiguous"} & {e.key for e in profile.key_averages()}


@needs_native
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("layout", ["tokens", "nchw", "channels_last", "expanded"])
def test_opcheck(layout, per_sample):
    a, b, dim = _pair(layout, torch.float32, torch.float16)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    operator = torch.ops.neq_kernels.channel_moments.default
    torch.library.opcheck(operator, (a, b, dim, per_sample), test_utils=tests)


@needs_native
@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("a: expected float32, float64, float16 or bfloat16", {"a": torch.ones(3, 4).int()}),
        ("b: expected float32, float64, float16 or bfloat16", {"b": torch.ones(3, 4).bool()}),
        ("a: expected 1 to 8 dimensions", {"a": torch.ones([1] * 9)}),
        ("b: expected 1 to 8 dimensions", {"b": torch.ones(())}),
        ("b: expected a's 2 dimensions, got 1", {"b": torch.ones(4)}),
        ("b: expected a's size 3 in dimension 0, got 2", {"b": torch.ones(2, 4)}),
        ("dim: expected -2 to 1, a dimension of a", {"dim": 2}),
        ("dim: expected -2 to 1, a dimension of a", {"dim": -3}),
        ("per_sample: expected samples in dimension 0", {"dim": 0, "per_sample": True}),
        ("a: expected fewer than 2^54 elements", {"a": torch.ones(1, 1).expand(1 << 30, 1 << 28),
                                                 "b": torch.ones(1, 1).expand(1 << 30, 1 << 28)}),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(message, arguments):
    good = {"a": torch.ones(3, 4), "b": torch.ones(3, 4), "dim": 1, "per_sample": False}
    with pytest.raises(RuntimeError) as error:
        _native(**{**good, **arguments})
    assert message in str(error.value)
    assert str(error.value).startswith("channel_moments: ")


def test_the_specification_refuses_samples_that_are_channels():
    with pytest.raises(ValueError, match="per_sample: expected samples in dimension 0, got dim=0"):
        reference.channel_moments(torch.ones(3, 4), torch.ones(3, 4), -2, True)


def test_a_backend_without_it_leaves_it_to_the_others(monkeypatch):
    """Whoever asks for Triton's gradients has a tracker still."""
    monkeypatch.setattr(backends, "_requested", "triton")
    monkeypatch.setattr(backends, "_resolved", {})
    name, _ = backends.resolve("channel_moments", "cpu", torch.float32)
    assert name == ("native" if native.available() else "torch")
