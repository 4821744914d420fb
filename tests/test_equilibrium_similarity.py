import math

import pytest
import torch

from neq_kernels.equilibrium.similarity import ConcatenatedCosine, MeanCosine, cosine


def test_cosine_of_zero_vectors():
    ab = torch.tensor([0.0, 0.0, 0.0, -6.0]).double()
    aa = torch.tensor([0.0, 0.0, 4.0, 4.0]).double()
    bb = torch.tensor([0.0, 9.0, 0.0, 9.0]).double()
    assert cosine(ab, aa, bb).tolist() == [1, 0, 0, -1]


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e15, 1e30])
def test_cosine_resolves_a_millionth_near_one(scale, backend):
    # cos of (1, 0) and (1, t) is 1 / sqrt(1 + t * t): 1 - 1e-6 for t = 1.414e-3
    length = 4096
    a = torch.full((length, 2), scale)
    b = a.clone()
    tilt = torch.tensor([1.0, -1.0]).repeat(length // 2)[:, None] * scale
    b += tilt * torch.tensor([math.sqrt(2e-6), math.sqrt(4e-6)])
    measure = ConcatenatedCosine()
    measure.update(a, b, -1)
    torch.testing.assert_close(
        1 - measure.value(measure.sums()), torch.tensor([1e-6, 2e-6]).double(), rtol=1e-2, atol=0
    )


def test_batches_accumulate_as_if_concatenated(backend):
    a, b = torch.randn(2, 10, 3, 4).unbind()
    whole, parts = ConcatenatedCosine(), ConcatenatedCosine()
    whole.update(a, b, 1)
    for x, y in zip(a.split([1, 6, 3]), b.split([1, 6, 3]), strict=True):
        parts.update(x, y, 1)
    torch.testing.assert_close(
        parts.value(parts.sums()), whole.value(whole.sums()), rtol=1e-14, atol=1e-14
    )
    flat = [x.transpose(0, 1).flatten(1).double() for x in (a, b)]
    torch.testing.assert_close(
        whole.value(whole.sums()), torch.cosine_similarity(*flat), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("similarity", [ConcatenatedCosine, MeanCosine])
@pytest.mark.parametrize("shape", [(10, 3), (10, 3, 4)])
def test_sums_add_up_over_processes(similarity, shape):
    a, b = torch.randn(2, *shape).unbind()
    whole, parts = similarity(), [similarity(), similarity()]
    assert whole.sums() is None
    axis = 1
    whole.update(a, b, axis)
    for part, rows in zip(parts, (slice(0, 3), slice(3, None)), strict=True):
        part.update(a[rows], b[rows], axis)
    together = whole.value(parts[0].sums() + parts[1].sums())
    torch.testing.assert_close(together, whole.value(whole.sums()), rtol=1e-14, atol=1e-14)
