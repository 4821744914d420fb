"""The native pack_channels on a GPU: the CPU's table of layouts, and what only a GPU has."""

import pytest
import torch
from test_pack_channels import DTYPES, LAYOUTS, _assert_sums, _counts, _make, _pack, _some

from neq_kernels import backends

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu", "poison")]


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    if reason := backends.why_not("native", "cuda"):
        pytest.skip(reason)


def _on_gpu(layout, dtype):
    """The same strides there: a plain .cuda() keeps them only where they are dense."""
    dy, dim = _make(layout, dtype)
    storage = torch.empty(dy.untyped_storage().nbytes() // dy.element_size(), dtype=dtype)
    storage.untyped_storage().copy_(dy.untyped_storage())
    return storage.cuda().as_strided(dy.shape, dy.stride(), dy.storage_offset()), dim


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_index_select_and_sum(layout, dtype):
    dy, dim = _on_gpu(layout, dtype)
    for count in _counts(dy.shape[dim]):
        index = _some(dy.shape[dim], count).cuda()
        packed, sums = _pack(dy, index, dim)
        selected = dy.index_select(dim, index)
        assert torch.equal(packed, selected)
        _assert_sums(sums.cpu(), selected.cpu(), dim)
        assert torch.equal(_pack(dy, index, dim, bias=False)[0], selected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_gives_zeros(layout):
    dy, dim = _on_gpu(layout, torch.bfloat16)
    for count in _counts(dy.shape[dim]):
        index = torch.cat([_some(dy.shape[dim], count), torch.full((5,), -1, dtype=torch.int32)])
        packed, sums = _pack(dy, index.cuda(), dim)
        real, padding = packed.split([count, 5], dim)
        assert torch.equal(real, dy.index_select(dim, index[:count].cuda()))
        assert not padding.any()
        assert not sums[count:].any()


@pytest.mark.parametrize("shape", [(60000, 768), (96, 256, 14, 14), (64, 64, 56, 56)])
def test_every_run_gives_the_same_bits(shape):
    dy = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    index = _some(shape[1], shape[1] // 3).cuda()
    packed, sums = _pack(dy, index)
    assert torch.equal(packed, dy.index_select(1, index))
    for _ in range(5):
        again = _pack(dy, index)
        assert torch.equal(again[0], packed)
        assert torch.equal(again[1], sums)


@pytest.mark.parametrize("shape", [(2**31 // 64 + 7, 64), (5, 8, 2**26), (2**31 // 512 + 3, 8, 64)])
def test_more_elements_than_32_bits_count(shape):
    """The last channel of the last positions lies behind 2^31 elements."""
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of GPU memory")
    dy = torch.zeros(shape, device="cuda", dtype=torch.bfloat16)
    channels = shape[1]
    dy[-1, 1:] = torch.randn(shape[1:], device="cuda", dtype=torch.bfloat16)[1:]
    index = torch.tensor([0, channels - 1], dtype=torch.int32, device="cuda")
    packed, sums = _pack(dy, index)
    assert torch.equal(packed, dy[:, [0, channels - 1]])
    assert torch.equal(sums, _pack(packed, torch.arange(2, device="cuda").int())[1])


def test_runs_on_the_current_stream():
    dy, stream = torch.randn(4096, 4096, device="cuda"), torch.cuda.Stream()
    index = _some(4096, 100).cuda()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        doubled = dy
        for _ in range(50):
            doubled = doubled * 1.01
        packed, _ = _pack(doubled, index)
    stream.synchronize()
    assert torch.equal(packed, doubled[:, index.long()])


def test_can_be_captured_in_a_graph():
    dy, index = torch.randn(3000, 96, device="cuda"), _some(96, 30).cuda()
    _pack(dy, index)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packed, sums = _pack(dy, index)
    dy.normal_()
    graph.replay()
    expected = _pack(dy, index)
    assert torch.equal(packed, expected[0])
    assert torch.equal(sums, expected[1])


def test_an_index_on_the_cpu_is_refused():
    with pytest.raises(
        RuntimeError, match="index: expected a contiguous int32 list on dy's device"
    ):
        _pack(torch.randn(4, 6, device="cuda"), _some(6, 2))
