"""bench.compact: every way finds the same neurons."""

import pytest
import torch

from bench import compact
from neq_kernels import native, reference

pytestmark = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))


def test_networks_are_the_networks():
    assert len(compact.NETWORKS["ResNet-50"]) == 2 * 53
    assert sum(compact.NETWORKS["ResNet-50"]) == 2 * 26560
    assert sum(compact.NETWORKS["GPT-2 medium"]) == 24 * 9216


@pytest.mark.parametrize("kind", ["masks", "velocities"])
def test_every_way_finds_the_same(kind):
    layers = compact.layers_of([5, 40, 1], 0.5, kind, "cpu")
    found = torch.ops.neq_kernels.compact(layers, compact.EPSILON)
    assert torch.equal(found, reference.compact(layers, compact.EPSILON))
    moving = [
        layer if kind == "masks" else reference.moving(layer, compact.EPSILON) for layer in layers
    ]
    assert found[:3].tolist() == [int(mask.sum()) for mask in moving]
    assert found[3:8][: int(found[0])].tolist() == moving[0].nonzero().flatten().tolist()


def test_rows():
    rows = compact.measure("ResNet-50", 0.5, "masks", 0.0, "cpu")
    assert [row.provider for row in rows] == list(compact.WAYS)
    assert rows[0].speedup == 1.0
