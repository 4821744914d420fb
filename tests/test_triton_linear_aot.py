"""linear_wgrad in every configuration, compiled for GPUs that need not be here.

What the compiler makes of a kernel decides its speed: registers spilled to memory, operands loaded
two bytes at a time and tensor cores left idle show in the machine code, without a GPU.
"""

import dataclasses

import pytest
import torch

pytest.importorskip("triton")
from triton_aot import DEVICES, TARGETS, compile_all, record

from neq_kernels import kernels
from neq_kernels.active import lists
from neq_kernels.kernels.configuration import TILES, Configuration
from neq_kernels.kernels.linear_wgrad import linear_wgrad

pytestmark = pytest.mark.skipif(kernels.interpreted(), reason="interpreted kernels do not compile")

TOKENS, INPUTS, SIZE, ACTIVE = 4096, 1024, 1024, 104
DTYPES = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}
FORMS = {
    # dY packed; then the same with the sum split.
    "packed": {"form": "packed"},
    "split": {"form": "packed", "split": 4},
    # Single channels of dY, and whole blocks of it where its tokens are contiguous.
    "gathered": {"form": "gathered", "split": 4},
    "contiguous": {"form": "gathered", "transposed": True},
    # Rows of X that do not start at multiples of 16 bytes.
    "odd": {"form": "packed", "inputs": INPUTS - 1},
    # Tokens more than 2^31 elements apart.
    "far": {"form": "packed", "apart": 1 << 26},
}
SCALAR = ("gathered", "odd")
CASES = [
    (target, arithmetic, tile, form)
    for target in TARGETS
    for arithmetic, tiles in TILES.items()
    for tile in tiles
    for form in FORMS
    if tile.least <= DEVICES[target].capability
    and (tile.gathers or form != "gathered")
    and (tile.scatters or form != "odd")
    and (form != "far" or target == "sm_90")
]


def launches(case):
    target, arithmetic, tile, form = case
    dtype = DTYPES[arithmetic]
    torch.backends.cuda.matmul.fp32_precision = "tf32" if arithmetic == "tf32" else "ieee"
    options = dict(FORMS[form])
    split, inputs = options.pop("split", 1), options.pop("inputs", INPUTS)
    dy = torch.empty(TOKENS, SIZE, dtype=dtype, device="meta")
    if options.pop("transposed", False):
        dy = torch.empty(SIZE, TOKENS, dtype=dtype, device="meta").t()
    x = torch.empty(TOKENS, inputs, dtype=dtype, device="meta")
    if apart := options.pop("apart", None):
        x = torch.empty(1, dtype=dtype, device="meta").as_strided((TOKENS, INPUTS), (apart, 1))
    padded = torch.full((SIZE,), -1, dtype=torch.int32)
    padded[:ACTIVE] = torch.arange(ACTIVE)
    channels = lists(padded, torch.tensor(ACTIVE))
    channels = dataclasses.replace(channels, padded=channels.padded.to("meta"))
    device = DEVICES[target]
    recorded = record(
        device, linear_wgrad, dy, x, channels, True, False,
        configuration=Configuration(tile, split), **options,
    )  # fmt: skip
    return [(launch, device) for launch in recorded]


@pytest.fixture(scope="module")
def built():
    return compile_all(CASES, launches)


def name(case):
    target, arithmetic, tile, form = case
    return f"{target}-{arithmetic}-{tile.rows}x{tile.columns}x{tile.depth}-{form}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_every_configuration(case, built):
    target, arithmetic, tile, form = case
    kernel, *others = built[case]
    assert kernel.name == "linear_wgrad_kernel"
    assert [other.name for other in others] == ["spread_kernel"] * (len(built[case]) - 1)
    assert all(other.spilled == 0 for other in others)
    assert kernel.spilled == 0, f"{kernel.usage['REG']} registers are not enough"
    allowed = tile.shared(DTYPES[arithmetic].itemsize)
    assert kernel.shared <= allowed <= DEVICES[target].shared
    best = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05"}[target]
    expected = "none" if arithmetic == "ieee" else best if tile.rows >= 64 else "mma"
    assert kernel.tensor_core() == expected
    if form not in SCALAR:
        # Both operands come 16 bytes at a time, for every step in flight before the loop.
        chunk = 16 // DTYPES[arithmetic].itemsize
        chunks = tile.depth * (tile.rows + tile.columns) // chunk // (32 * tile.warps)
        assert kernel.wide_loads() >= max(chunks, 1) * (tile.stages - 1)
        assert kernel.narrow_copies() == 0
