"""compact: masks or velocities of many layers -> their lists of active channels, in one tensor."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neq_kernels import native, reference
from neq_kernels.active import ActiveSet
from neq_kernels.equilibrium.selectors import Velocity
from neq_kernels.sets import sets_of

needs_native = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))
SIZES = [(1,), (0,), (5, 0, 3), (64, 1, 1000, 33), tuple(range(40))]


def _native(layers, epsilon=0.0):
    return torch.ops.neq_kernels.compact(layers, epsilon)


def _lists(masks):
    """What is expected, spelled out."""
    chosen = [[c for c, active in enumerate(mask.tolist()) if active] for mask in masks]
    padded = [c + [-1] * (len(mask) - len(c)) for c, mask in zip(chosen, masks, strict=True)]
    return [len(c) for c in chosen] + [c for layer in padded for c in layer]


def _masks(sizes, share):
    torch.manual_seed(0)
    return [torch.rand(size) < share for size in sizes]


@pytest.fixture(params=["torch", "native"])
def compact(request):
    if request.param == "torch":
        return reference.compact
    if not native.available():
        pytest.skip(native.why_not())
    return _native


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_lists_of_masks(compact, sizes, share, poison):
    masks = _masks(sizes, share)
    lists = compact(masks, 0.0)
    assert lists.dtype == torch.int32
    assert lists.tolist() == _lists(masks)


@given(st.lists(st.lists(st.booleans(), max_size=70), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_any_masks(flags):
    masks = [torch.tensor(layer, dtype=torch.bool) for layer in flags]
    assert reference.compact(masks).tolist() == _lists(masks)
    if native.available():
        assert _native(masks).tolist() == _lists(masks)
    assert sets_of(masks) == [ActiveSet.from_mask(mask) for mask in masks]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("epsilon", [0.0, 0.25, 0.7, 0.3, math.inf])
def test_velocities_train_on_from_epsilon_on(compact, dtype, epsilon):
    """The bound itself trains, NaN does not: as the Velocity selector decides, which asks the same
    function. 0.7 and 0.3 round to either side in float32."""
    edge = torch.tensor(epsilon, dtype=dtype)
    below = torch.nextafter(edge, torch.tensor(-1.0, dtype=dtype))
    values = [edge, -edge, below, -below, torch.tensor(math.nan), torch.tensor(math.inf)]
    velocity = torch.stack([value.to(dtype) for value in values])
    mask = velocity.abs() >= epsilon
    assert mask[:2].all()
    assert not mask[4]
    assert compact([velocity, velocity[:3]], epsilon).tolist() == _lists([mask, mask[:3]])
    scores = type("Scores", (), {"velocity": velocity, "inclusive": False})
    assert torch.equal(Velocity(epsilon)({"layer": scores})["layer"], mask)


def test_sets_share_no_memory(tmp_path):
    first, second = sets_of(_masks((3000, 4), 0.5))
    assert second.index.untyped_storage().nbytes() == second.index.nbytes
    assert (first.size, second.size) == (3000, 4)
    assert sets_of([]) == []


@needs_native
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_opcheck():
    tests = ("test_schema", "test_faketensor")
    operator = torch.ops.neq_kernels.compact.default
    torch.library.opcheck(operator, (_masks((5, 0, 9), 0.5), 0.0), test_utils=tests)
    torch.library.opcheck(operator, ([torch.randn(7).double()], 0.5), test_utils=tests)


@needs_native
@pytest.mark.parametrize(
    ("message", "layers", "epsilon"),
    [
        ("expected bool masks, or velocities in float32 or float64", [torch.ones(3).half()], 0.0),
        ("expected bool masks, or velocities in float32 or float64", [torch.ones(3).int()], 0.0),
        ("layers: expected one dimension", [torch.ones(3, 2)], 0.0),
        ("layers: expected one dimension, contiguous", [torch.ones(6)[::2]], 0.0),
        ("in place 1; call compact", [torch.ones(3), torch.ones(3).double()], 0.0),
        ("epsilon: expected a number >= 0, got -1", [torch.ones(3)], -1.0),
        ("epsilon: expected a number >= 0, got nan", [torch.ones(3)], math.nan),
    ],
)
def test_bad_arguments_are_named(message, layers, epsilon):
    with pytest.raises(RuntimeError) as error:
        _native(layers, epsilon)
    assert message in str(error.value)
    assert str(error.value).startswith("compact: ")
