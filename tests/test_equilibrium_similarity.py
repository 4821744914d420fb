import math

import pytest
import torch

from neq_kernels.equilibrium import similarity
from neq_kernels.equilibrium.similarity import ConcatenatedCosine, channel_moments, cosine


def python_moments(a, b, axis):
    a = a.double().movedim(axis, 0).flatten(1) if a.dim() > 1 else a.double()[:, None]
    b = b.double().movedim(axis, 0).flatten(1) if b.dim() > 1 else b.double()[:, None]
    rows = list(zip(a.tolist(), b.tolist(), strict=True))
    return [
        [math.fsum(x * y for x, y in zip(left, right, strict=True)) for left, right in pairs]
        for pairs in (rows, [(x, x) for x, _ in rows], [(y, y) for _, y in rows])
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 5, 4, 2), 1), ((5, 4, 2), 0), ((3, 4, 5), -1), ((7, 5), -1), ((5,), -1), ((0, 5), 1)],
)
@pytest.mark.parametrize("chunk", [1, 30, 1 << 20])
def test_moments_are_exact_sums(monkeypatch, shape, axis, dtype, chunk):
    monkeypatch.setitem(similarity.CHUNK, "cpu", chunk)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    got = channel_moments(a, b, axis)
    assert all(moment.dtype == torch.float64 for moment in got)
    torch.testing.assert_close(
        torch.stack(got),
        torch.tensor(python_moments(a, b, axis), dtype=torch.float64),
        rtol=1e-13,
        atol=1e-13,
    )


def test_moments_of_channels_last():
    a, b = torch.randn(2, 4, 6, 3, 3).unbind()
    expected = channel_moments(a, b, 1)
    last = [x.to(memory_format=torch.channels_last) for x in (a, b)]
    torch.testing.assert_close(channel_moments(*last, 1), expected, rtol=1e-13, atol=1e-13)


def test_cosine_of_zero_vectors():
    ab = torch.tensor([0.0, 0.0, 0.0, -6.0]).double()
    aa = torch.tensor([0.0, 0.0, 4.0, 4.0]).double()
    bb = torch.tensor([0.0, 9.0, 0.0, 9.0]).double()
    assert cosine(ab, aa, bb).tolist() == [1, 0, 0, -1]


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e15, 1e30])
def test_cosine_resolves_a_millionth_near_one(scale):
    # cos of (1, 0) and (1, t) is 1 / sqrt(1 + t * t): 1 - 1e-6 for t = 1.414e-3
    length = 4096
    a = torch.full((length, 2), scale)
    b = a.clone()
    tilt = torch.tensor([1.0, -1.0]).repeat(length // 2)[:, None] * scale
    b += tilt * torch.tensor([math.sqrt(2e-6), math.sqrt(4e-6)])
    measure = ConcatenatedCosine()
    measure.update(a, b, -1)
    torch.testing.assert_close(
        1 - measure.value(), torch.tensor([1e-6, 2e-6]).double(), rtol=1e-2, atol=0
    )


def test_batches_accumulate_as_if_concatenated():
    a, b = torch.randn(2, 10, 3, 4).unbind()
    whole, parts = ConcatenatedCosine(), ConcatenatedCosine()
    whole.update(a, b, 1)
    for x, y in zip(a.split([1, 6, 3]), b.split([1, 6, 3]), strict=True):
        parts.update(x, y, 1)
    torch.testing.assert_close(parts.value(), whole.value(), rtol=1e-14, atol=1e-14)
    flat = [x.transpose(0, 1).flatten(1).double() for x in (a, b)]
    torch.testing.assert_close(whole.value(), torch.cosine_similarity(*flat), rtol=1e-12, atol=0)


def test_value_without_outputs():
    with pytest.raises(RuntimeError, match="no outputs were compared"):
        ConcatenatedCosine().value()
