import math

import pytest
import torch

from neq_kernels.equilibrium.similarity import ConcatenatedCosine, cosine


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
        1 - measure.value(), torch.tensor([1e-6, 2e-6]).double(), rtol=1e-2, atol=0
    )


def test_batches_accumulate_as_if_concatenated(backend):
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
