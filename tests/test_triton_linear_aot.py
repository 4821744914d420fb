"""linear_wgrad and linear_dgrad in every configuration, compiled for GPUs that need not be here.

What the compiler makes of a kernel decides its speed: registers spilled to memory, operands loaded
two bytes at a time and tensor cores left idle show in the machine code, without a GPU.
"""

import pytest
import torch

pytest.importorskip("triton")
from triton_aot import DEVICES, RECENT, SPILLED, TARGETS, channels_of, compile_all, compiled, record
from triton_kinds import kind_of

from neq_kernels import kernels
from neq_kernels.kernels.configuration import TILES, Configuration
from neq_kernels.kernels.linear_dgrad import linear_dgrad
from neq_kernels.kernels.linear_wgrad import linear_wgrad

pytestmark = pytest.mark.skipif(kernels.interpreted(), reason="interpreted kernels do not compile")

TOKENS, INPUTS, SIZE, ACTIVE = 4096, 1024, 1024, 104
DTYPES = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}
TENSOR_CORES = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05"}
WGRAD = {
    # dY packed; then the same with the sum split.
    "packed": {"form": "packed"},
    "split": {"form": "packed", "split": 4},
    # Single channels of dY, rows of X that do not start at multiples of 16 bytes, and both.
    "gathered": {"form": "gathered"},
    "gathered, split": {"form": "gathered", "split": 4},
    "odd": {"form": "packed", "inputs": INPUTS - 1},
    "odd, split": {"form": "packed", "inputs": INPUTS - 1, "split": 4},
    "both": {"form": "gathered", "inputs": INPUTS - 1},
    "both, split": {"form": "gathered", "inputs": INPUTS - 1, "split": 4},
    # Whole blocks of dY where its tokens are contiguous; tokens more than 2^31 elements apart.
    "contiguous": {"form": "gathered", "transposed": True},
    "far": {"form": "packed", "apart": 1 << 26},
}
# Fewer for dX: nothing is split. The columns of transformers' Conv1D are packed like dY.
DGRAD = {name: WGRAD[name] for name in ("packed", "gathered", "odd", "both", "contiguous")} | {
    "columns": {"form": "packed", "columns": True}
}
FORMS = {"linear_wgrad": WGRAD, "linear_dgrad": DGRAD}
# Those that load as others do, from other places: what that makes of registers is seen on one GPU.
ALIKE = ("contiguous", "far", "columns")
CASES = [
    (operator, target, arithmetic, tile, form)
    for arithmetic in ("ieee", "half", "tf32")  # what compiles longest first
    for operator, forms in FORMS.items()
    for tile in TILES[arithmetic]
    for form in forms
    for target in TARGETS
    if tile.least <= DEVICES[target].capability
    and (tile.gathers or not form.startswith(("gathered", "both")))
    and (tile.scatters or not form.startswith(("odd", "both")))
    and (target == "sm_90" or form not in ALIKE)
]


def launches(case):
    operator, target, arithmetic, tile, form = case
    torch.backends.cuda.matmul.fp32_precision = "tf32" if arithmetic == "tf32" else "ieee"
    options = dict(FORMS[operator][form])
    split, inputs = options.pop("split", 1), options.pop("inputs", INPUTS)
    options["configuration"] = Configuration(tile, split if operator == "linear_wgrad" else 1)

    def empty(*shape):
        return torch.empty(shape, dtype=DTYPES[arithmetic], device="meta")

    dy, x = empty(TOKENS, SIZE), empty(TOKENS, inputs)
    if options.pop("transposed", False):
        dy = empty(SIZE, TOKENS).t()
    if apart := options.pop("apart", None):
        x = empty(1).as_strided((TOKENS, INPUTS), (apart, 1))
    columns = options.pop("columns", False)
    weight = empty(inputs, SIZE) if columns else empty(SIZE, inputs)
    channels = channels_of(SIZE, ACTIVE)
    device = DEVICES[target]
    if operator == "linear_wgrad":
        recorded = record(device, linear_wgrad, dy, x, channels, True, columns, **options)
    else:
        recorded = record(device, linear_dgrad, dy, weight, channels, columns, **options)
    return [(launch, device) for launch in recorded]


@pytest.fixture(scope="module")
def built():
    return compile_all(CASES, launches)


def name(case):
    operator, target, arithmetic, tile, form = case
    return f"{operator}-{target}-{arithmetic}-{tile.rows}x{tile.columns}x{tile.depth}-{form}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_every_configuration(case, built):
    operator, target, arithmetic, tile, form = case
    kernel, *others = built[case]
    assert kernel.name == f"{operator}_kernel"
    assert [other.name for other in others] == ["spread_kernel"] * (len(built[case]) - 1)
    assert all(other.spilled <= SPILLED for other in others)
    assert kernel.spilled <= SPILLED, f"{kernel.usage['REG']} registers are not enough"
    itemsize = DTYPES[arithmetic].itemsize
    assert kernel.shared <= tile.shared(itemsize) <= DEVICES[target].shared
    wide = tile.rows >= 64
    expected = "none" if arithmetic == "ieee" else TENSOR_CORES[target] if wide else "mma"
    assert kernel.tensor_core() == expected
    # What can comes 16 bytes at a time, for every step in flight before the loop.
    kind = kind_of(launches(case)[0][0])
    sides = tile.rows * kind.rows + tile.columns * kind.columns
    chunks = tile.depth * sides // (16 // itemsize) // (32 * tile.warps)
    assert kernel.wide_loads() >= chunks
    if kind.rows and kind.columns:
        # What waits for a list of channels first is one step behind, and so is the list: 4 bytes.
        indirect = operator == "linear_dgrad" and form != "columns"
        assert kernel.wide_loads() >= max(chunks, 1) * (tile.stages - 1 - indirect)
        copies = 2 * (tile.stages + 1) if RECENT else tile.depth
        assert kernel.narrow_copies() <= (copies if indirect else 0)


def test_a_tile_too_large_is_seen():
    """The reading of the machine code: this tile may not gather because of what it shows."""
    tile = TILES["half"][-1]
    ((launch, device), *_) = launches(("linear_wgrad", "sm_80", "half", tile, "gathered"))
    assert compiled(launch, device).spilled > 0
