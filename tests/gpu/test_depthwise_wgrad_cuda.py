"""The native depthwise_wgrad on a GPU: the CPU's table of convolutions, and what only a GPU has."""

import pytest
import torch
from test_depthwise_wgrad import CONVS, DTYPES, FORMATS, _assert_right, _conv, _some, _wgrad

from neq_kernels import backends

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu", "poison")]


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    if reason := backends.why_not("native", "cuda"):
        pytest.skip(reason)


def _moved(tensor):
    """The same strides there: a plain .cuda() keeps them only where they are dense."""
    storage = torch.empty(
        tensor.untyped_storage().nbytes() // tensor.element_size(), dtype=tensor.dtype
    )
    storage.untyped_storage().copy_(tensor.untyped_storage())
    return storage.cuda().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", CONVS)
def test_equals_a_dense_backward_and_itself(name, form, dtype):
    conv = CONVS[name]
    tensors = conv.tensors(dtype, form)
    moved = [_moved(tensor) for tensor in tensors]
    for count in sorted({0, 1, conv.outputs // 3, conv.outputs}):
        index = _some(conv.outputs, count)
        dw, db = _wgrad(conv, *moved, index.cuda())
        _assert_right(conv, tensors, index, dw.cpu(), db.cpu())
        padded = torch.cat([index, torch.full((conv.outputs - count,), -1, dtype=torch.int32)])
        for _ in range(2):
            again = _wgrad(conv, *moved, index.cuda())
            assert torch.equal(again[0], dw)
            assert torch.equal(again[1], db)
        dw, db = _wgrad(conv, *moved, padded.cuda())
        _assert_right(conv, tensors, index, dw.cpu(), db.cpu())


@pytest.mark.parametrize("form", ["contiguous", "last"])
def test_long_sums_keep_their_precision(form):
    conv = _conv(40, 9, (100, 100), padding=0)
    dy, x, weight = (_moved(tensor) for tensor in conv.tensors(form=form))
    dw, db = _wgrad(conv, dy.fill_(0.1), x.fill_(0.1), weight, _some(9, 9).cuda())
    length, value = dy.numel() / 9, float(dy.flatten()[0])
    torch.testing.assert_close(dw, torch.full_like(dw, length * value**2), rtol=2e-6, atol=0)
    torch.testing.assert_close(db, torch.full_like(db, length * value), rtol=2e-6, atol=0)


def test_can_be_captured_in_a_graph():
    conv = CONVS["7x7"]
    dy, x, weight = (_moved(tensor) for tensor in conv.tensors())
    index = _some(conv.outputs, 9).cuda()
    _wgrad(conv, dy, x, weight, index)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        dw, db = _wgrad(conv, dy, x, weight, index)
    dy.normal_()
    graph.replay()
    expected = _wgrad(conv, dy, x, weight, index)
    assert torch.equal(dw, expected[0])
    assert torch.equal(db, expected[1])
