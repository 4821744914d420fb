"""The native channel_moments and compact on a GPU: the CPU's tables, and what only a GPU has."""

import pytest
import torch
from test_channel_moments import DTYPES, LAYOUTS, _assert_close, _native, _pair
from test_compact import SIZES, _lists, _masks

from neq_kernels import backends, reference

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu", "poison")]


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    if reason := backends.why_not("native", "cuda"):
        pytest.skip(reason)


def _there(x):
    """The same strides there: a plain .cuda() keeps them only where they are dense."""
    storage = torch.empty(x.untyped_storage().nbytes() // x.element_size(), dtype=x.dtype)
    storage.untyped_storage().copy_(x.untyped_storage())
    return storage.cuda().as_strided(x.shape, x.stride(), x.storage_offset())


@pytest.mark.parametrize("other", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_specification(layout, dtype, other):
    a, b, dim = _pair(layout, dtype, other)
    for per_sample in (False, True) if dim % a.dim() else (False,):
        moments = _native(_there(a), _there(b), dim, per_sample)
        assert moments.is_cuda
        _assert_close(moments.cpu(), a, b, dim, per_sample)


@pytest.mark.parametrize("shape", [(50_000, 768), (300, 64, 56, 56), (300, 64, 55, 55)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_large_ones_give_the_same_bits_again(shape, dtype, last):
    a, b = torch.randn(2, *shape, device="cuda").to(dtype).unbind()
    if last and len(shape) == 4:
        a, b = (x.contiguous(memory_format=torch.channels_last) for x in (a, b))
    moments = _native(a, b)
    assert torch.equal(_native(a, b), moments)
    torch.testing.assert_close(
        moments, reference.channel_moments(a, b, 1, False), rtol=1e-11, atol=1e-9
    )


def test_another_stream_is_waited_for_nowhere():
    a, b = torch.randn(2, 1000, 64, device="cuda").unbind()
    expected = _native(a, b)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        moments = _native(a, b)
    stream.synchronize()
    assert torch.equal(moments, expected)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("sizes", [*SIZES, (7,) * 300], ids=str)
def test_lists_of_masks(sizes, share):
    masks = _masks(sizes, share)
    lists = torch.ops.neq_kernels.compact([mask.cuda() for mask in masks], 0.0)
    assert lists.is_cuda
    assert lists.tolist() == _lists(masks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 0.7])
def test_velocities(dtype, epsilon):
    velocities = [torch.randn(size, dtype=dtype) for size in (5, 1000)]
    velocities[0][:3] = torch.tensor([epsilon, -epsilon, torch.nan], dtype=dtype)
    lists = torch.ops.neq_kernels.compact([v.cuda() for v in velocities], epsilon)
    assert torch.equal(lists.cpu(), reference.compact(velocities, epsilon))
