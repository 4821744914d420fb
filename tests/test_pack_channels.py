"""The native pack_channels against index_select and sums in fp64."""

import os
import subprocess
import sys

import pytest
import torch

from neq_kernels import native

pytestmark = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

# name: dY made of what randn(*shape) gives, and the dimension of its channels
LAYOUTS = {
    "tokens": lambda randn: (randn(70, 48), 1),
    "three tokens of 19": lambda randn: (randn(3, 19), -1),
    "batch, tokens": lambda randn: (randn(2, 9, 40), 2),
    "rows summed in parts": lambda randn: (randn(40, 4100), 1),
    "one position": lambda randn: (randn(23), 0),
    "fewer channels than lanes": lambda randn: (randn(200, 5), 1),
    "nchw": lambda randn: (randn(3, 17, 5, 7), 1),
    "nchw, 1x1": lambda randn: (randn(9, 32, 1, 1), 1),
    "nchw, long planes": lambda randn: (randn(2, 3, 70, 70), 1),
    "ncl": lambda randn: (randn(4, 24, 33), 1),
    "ncdhw": lambda randn: (randn(2, 11, 3, 4, 5), 1),
    "no batch": lambda randn: (randn(12, 6, 6), 0),
    "channels_last": lambda randn: (_last(randn(3, 35, 6, 5)), 1),
    "channels_last_3d": lambda randn: (_last(randn(2, 21, 3, 4, 5)), 1),
    "transposed": lambda randn: (randn(33, 50).t(), 1),
    "every other row": lambda randn: (randn(60, 40)[::2], 1),
    "every other channel": lambda randn: (randn(30, 90)[:, ::2], 1),
    "columns of a wider matrix": lambda randn: (randn(30, 90)[:, 7:50], 1),
    "cropped nchw": lambda randn: (randn(2, 8, 12, 12)[:, :, 1:-1, 1:-1], 1),
    "cropped channels_last": lambda randn: (_last(randn(2, 20, 9, 9))[:, 2:19, 1:-1, ::2], 1),
    "ncl from tokens": lambda randn: (randn(3, 40, 18).transpose(1, 2), 1),
    "expanded": lambda randn: (randn().expand(3, 18, 4, 4), 1),
    "expanded over the batch": lambda randn: (randn(1, 18, 10).expand(5, 18, 10), 1),
    "empty batch": lambda randn: (randn(0, 12, 3, 3), 1),
    "no channels": lambda randn: (randn(4, 0, 3), 1),
}


def _last(dy):
    return dy.contiguous(
        memory_format=torch.channels_last if dy.dim() == 4 else torch.channels_last_3d
    )


def _pack(dy, index, dim=1, width=None, bias=True):
    width = index.numel() if width is None else width
    return torch.ops.neq_kernels.pack_channels(dy, index, width, dim, bias)


def _some(channels, count, seed=0):
    chosen = torch.randperm(channels, generator=torch.Generator().manual_seed(seed))[:count]
    return chosen.sort().values.int()


def _counts(channels):
    return sorted({0, min(1, channels), channels // 2, channels})


def _assert_sums(sums, selected, dim):
    """Contract 1: at most twice torch's own error, or 4 eps sqrt(length) times the scale."""
    if selected.numel() == 0:
        assert not sums.any()
        return
    others = [d for d in range(selected.dim()) if d != dim % selected.dim()]
    exact = selected.double().sum(others) if others else selected.double()
    own = (selected.sum(others) if others else selected).double()
    length = selected.numel() / selected.shape[dim]
    scale = selected.double().abs().max()
    eps = torch.finfo(sums.dtype).eps
    allowed = torch.maximum(2 * (own - exact).abs().max(), 4 * eps * length**0.5 * scale)
    assert ((sums.double() - exact).abs() <= allowed).all()


def _make(layout, dtype):
    torch.manual_seed(0)
    return LAYOUTS[layout](lambda *shape: torch.randn(shape).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_index_select_and_sum(layout, dtype, isa, poison):
    dy, dim = _make(layout, dtype)
    for count in _counts(dy.shape[dim]):
        index = _some(dy.shape[dim], count)
        packed, sums = _pack(dy, index, dim)
        selected = dy.index_select(dim, index)
        assert torch.equal(packed, selected)
        assert sums.shape == (count,)
        _assert_sums(sums, selected, dim)
        assert torch.equal(_pack(dy, index, dim, bias=False)[0], selected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_gives_zeros(layout, isa, poison):
    dy, dim = _make(layout, torch.bfloat16)
    for count in _counts(dy.shape[dim]):
        index = torch.cat([_some(dy.shape[dim], count), torch.full((5,), -1, dtype=torch.int32)])
        packed, sums = _pack(dy, index, dim)
        real, padding = packed.split([count, 5], dim)
        assert torch.equal(real, dy.index_select(dim, index[:count]))
        assert not padding.any()
        assert not sums[count:].any()


@pytest.mark.parametrize("gaps", [[], [0], [29], [1, 28], [20, 22], [4, 5, 6, 12, 20]])
def test_long_copies_of_planes_leave_out_the_frozen_ones(gaps, isa, poison):
    dy = torch.randn(3, 30, 33, 33)
    index = torch.tensor([c for c in range(30) if c not in gaps] + [-1, -1], dtype=torch.int32)
    packed, _ = _pack(dy, index, bias=False)
    assert torch.equal(packed[:, :-2], dy.index_select(1, index[:-2]))
    assert not packed[:, -2:].any()


def test_width_takes_the_front_of_the_list(isa):
    dy, index = torch.randn(40, 24), _some(24, 16)
    packed, sums = _pack(dy, index, width=7)
    assert torch.equal(packed, dy[:, index[:7].long()])
    assert sums.shape == (7,)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", ["tokens", "nchw", "channels_last", "channels_last_3d"])
def test_keeps_the_memory_format(layout, bias):
    dy, dim = _make(layout, torch.float32)
    packed, sums = _pack(dy, _some(dy.shape[dim], 4), dim, bias=bias)
    assert packed.stride() == torch.empty_like(dy.narrow(dim, 0, 4)).stride()
    assert sums.shape == (4 if bias else 0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_survives_packing_and_summing(dtype, isa):
    """All bit patterns, NaN, inf and subnormals among them; odd channels sum two rows."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    dy = torch.stack([patterns.view(dtype), patterns.view(dtype).roll(12345)])
    packed, sums = _pack(dy, torch.arange(2**16, dtype=torch.int32))
    assert torch.equal(packed.view(torch.int16), dy.view(torch.int16))
    assert torch.equal(sums.nan_to_num(7), dy.double().sum(0).to(dtype).nan_to_num(7))
    assert torch.equal(sums.isnan(), dy.double().sum(0).isnan())


@pytest.mark.parametrize("layout", ["rows", "planes", "transposed"])
def test_threads_change_no_bit(layout, isa):
    dy = torch.randn(6000, 70) if layout != "planes" else torch.randn(40, 70, 13, 13)
    dy = dy.view(70, 6000).t() if layout == "transposed" else dy
    index, before = _some(70, 33), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(_pack(dy, index))
    finally:
        torch.set_num_threads(before)
    for packed, sums in results[1:]:
        assert torch.equal(packed, results[0][0])
        assert torch.equal(sums, results[0][1])


def test_isas_agree():
    if native.build_info()["cpu_isas"] == ["scalar"]:
        pytest.skip("this processor has one instruction set only")
    dy, index, before = torch.randn(500, 100, dtype=torch.float64), _some(100, 40), native.cpu_isa()
    sums = []
    for name in native.build_info()["cpu_isas"]:
        native.set_cpu_isa(name)
        sums.append(_pack(dy, index)[1])
    native.set_cpu_isa(before)
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-13, atol=1e-13)


def test_long_sums_keep_their_precision(isa):
    """A running sum in fp32 would be off by thousands of eps here."""
    for dy in (torch.full((400_000, 9), 0.1), torch.full((1, 9, 400_000), 0.1)):
        _, sums = _pack(dy, _some(9, 9))
        exact = torch.full((9,), 400_000 * float(dy.flatten()[0]))
        torch.testing.assert_close(sums, exact, rtol=5e-7, atol=0)


@pytest.mark.parametrize(
    "layout", ["cropped nchw", "cropped channels_last", "every other channel", "expanded"]
)
def test_strided_views_are_read_in_place(layout):
    dy, dim = _make(layout, torch.float32)
    index = _some(dy.shape[dim], 4)
    _pack(dy, index, dim)
    with torch.profiler.profile(profile_memory=True) as profile:
        packed, sums = _pack(dy, index, dim)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())
    ours = packed.untyped_storage().nbytes() + sums.untyped_storage().nbytes()
    assert ours <= allocated <= ours + 256
    assert not {"aten::copy_", "aten::contiguous"} & {e.key for e in profile.key_averages()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", ["tokens", "nchw", "channels_last", "cropped nchw", "expanded"])
def test_opcheck(layout, bias):
    dy, dim = _make(layout, torch.float32)
    arguments = (dy, _some(dy.shape[dim], 4), 3, dim, bias)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.neq_kernels.pack_channels.default, arguments, test_utils=tests)


def _int(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("dy: expected float32, float64, float16 or bfloat16, got", {"dy": torch.ones(3, 4).int()}),
        ("dy: expected 1 to 8 dimensions, got shape", {"dy": torch.ones([1] * 9)}),
        ("dy: expected 1 to 8 dimensions, got shape", {"dy": torch.ones(())}),
        ("dim: expected -2 to 1, a dimension of dy", {"dim": 2}),
        ("dim: expected -2 to 1, a dimension of dy", {"dim": -3}),
        ("index: expected a contiguous int32 list", {"index": torch.tensor([0, 2])}),
        ("index: expected a contiguous int32 list", {"index": _int(0, 2).view(1, 2)}),
        ("index: expected a contiguous int32 list", {"index": _int(0, 1, 2, 3)[::2]}),
        ("at least width=3 long", {"width": 3}),
        ("width >= 0", {"width": -1}),
        ("index: expected rising channels in [0, 4), then only -1, got 4", {"index": _int(0, 4)}),
        ("index: expected rising channels in [0, 4), then only -1, got 1", {"index": _int(1, 1)}),
        ("index: expected rising channels in [0, 4), then only -1, got 0", {"index": _int(3, 0)}),
        ("index: expected rising channels in [0, 4), then only -1, got 2", {"index": _int(-1, 2)}),
        ("index: expected rising channels in [0, 4), then only -1, got -7", {"index": _int(1, -7)}),
    ],
)
def test_bad_arguments_are_named(message, arguments):
    good = {"dy": torch.ones(3, 4), "index": _int(0, 2), "dim": 1, "width": 2}
    with pytest.raises(RuntimeError) as error:
        _pack(**{**good, **arguments})
    assert message in str(error.value)
    assert str(error.value).startswith("pack_channels: ")


def test_cpu_isa_can_be_forced():
    with pytest.raises(ValueError, match=r"cpu_isa: expected one this machine has .*got 'mmx'"):
        native.set_cpu_isa("mmx")
    code = "from neq_kernels import native; print(native.cpu_isa())"
    environment = {**os.environ, "NEQ_CPU_ISA": "scalar"}
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "scalar"
