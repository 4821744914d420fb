"""The convolution kernels in every configuration, compiled for GPUs that need not be here.

What the compiler makes of a kernel decides its speed: registers spilled to memory, operands loaded
two bytes at a time and tensor cores left idle show in the machine code, without a GPU.
"""

import dataclasses
from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("triton")
from triton_aot import DEVICES, TARGETS, channels_of, compile_all, record

from neq_kernels import kernels
from neq_kernels.kernels.configuration import Configuration
from neq_kernels.kernels.conv import Options, conv_backward
from neq_kernels.kernels.conv_tiles import MIXED, NARROW, WIDE

pytestmark = pytest.mark.skipif(kernels.interpreted(), reason="interpreted kernels do not compile")

DTYPES = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}
ACTIVE = 40


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution of 32 images, and the tiles that its two kernels may be given."""

    tiles: dict
    inputs: int = 256
    outputs: int = 256
    side: int = 28
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    last: bool = False
    form: str = "gathered"
    split: int = 1
    # Which of dY and X in wgrad, and of dY and W in dgrad, load 16 bytes at a time.
    wide: tuple[str, ...] = ()

    def operands(self, dtype):
        memory_format = torch.channels_last if self.last else torch.contiguous_format
        padding = self.kernel // 2
        out = (self.side + 2 * padding - self.kernel) // self.stride + 1
        shapes = (
            (32, self.outputs, out, out),
            (32, self.inputs, self.side, self.side),
            (self.outputs, self.inputs // self.groups, self.kernel, self.kernel),
        )
        made = [
            torch.empty(s, dtype=dtype, device="meta", memory_format=memory_format) for s in shapes
        ]
        return made, ((self.stride,) * 2, (padding,) * 2, (1, 1), self.groups)


WGRAD, DGRAD = "conv_wgrad_kernel", "conv_dgrad_kernel"
LAYERS = {
    "packed": Layer(WIDE, last=True, form="packed", wide=(WGRAD, DGRAD)),
    "split": Layer(WIDE, last=True, form="packed", split=4, wide=(WGRAD, DGRAD)),
    "pointwise": Layer(WIDE, kernel=1, wide=(WGRAD, DGRAD)),
    "gathered": Layer(MIXED, last=True),
    "planes": Layer(MIXED),
    "packed-groups": Layer(MIXED, groups=4, last=True, form="packed"),
    "stride": Layer(NARROW, stride=2),
    "stem": Layer(NARROW, inputs=3, outputs=64, side=56, kernel=7, stride=2),
    "groups": Layer(NARROW, groups=32),
}
# Layers whose dgrad has tiles of another set, for W lies in planes.
OTHER_DGRAD = ("planes",)
CASES = [
    (target, arithmetic, tile, name)
    for target in TARGETS
    for name, layer in LAYERS.items()
    for arithmetic, tiles in layer.tiles.items()
    for tile in tiles
    if tile.least <= DEVICES[target].capability
    # Every tile on one GPU, those of 16-bit products on all; float32 for one layer of each set.
    and (target == "sm_90" or (arithmetic == "half" and name in ("packed", "groups")))
    and (arithmetic == "half" or name in ("packed", "planes", "groups"))
]


@contextmanager
def arithmetic_of(name):
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    yield
    torch.backends.cudnn.allow_tf32 = before


def launches(case):
    target, arithmetic, tile, name = case
    layer, device = LAYERS[name], DEVICES[target]
    operands, window = layer.operands(DTYPES[arithmetic])
    channels = channels_of(layer.outputs, ACTIVE)
    options = Options(configuration=Configuration(tile, layer.split), form=layer.form)
    with arithmetic_of(arithmetic):
        recorded = record(
            device, conv_backward, *operands, channels, True, *window, options=options
        )
    return [
        (launch, device)
        for launch in recorded
        if launch.name in (WGRAD, DGRAD) and not (launch.name == DGRAD and name in OTHER_DGRAD)
    ]


@pytest.fixture(scope="module")
def built():
    return compile_all(CASES, launches)


def label(case):
    target, arithmetic, tile, name = case
    return f"{target}-{arithmetic}-{tile.rows}x{tile.columns}x{tile.depth}-{name}"


@pytest.mark.parametrize("case", CASES, ids=label)
def test_every_configuration(case, built):
    target, arithmetic, tile, name = case
    assert built[case]
    for kernel in built[case]:
        assert kernel.spilled == 0, f"{kernel.name}: {kernel.usage['REG']} registers do not do"
        assert kernel.shared <= tile.shared(DTYPES[arithmetic].itemsize) <= DEVICES[target].shared
        best = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05"}[target]
        expected = "none" if arithmetic == "ieee" else best if tile.rows >= 64 else "mma"
        assert kernel.tensor_core() == expected
        if kernel.name in LAYERS[name].wide:
            # Both operands come 16 bytes at a time, for every step in flight before the loop.
            chunk = 16 // DTYPES[arithmetic].itemsize
            chunks = tile.depth * (tile.rows + tile.columns) // chunk // (32 * tile.warps)
            assert kernel.wide_loads() >= max(chunks, 1)
            assert element_loads(kernel, arithmetic) == 0


def element_loads(kernel, arithmetic):
    """Loads of single 16-bit elements; of float32, the list of channels comes so too."""
    return kernel.count(r"ld\.global[.\w:]*\.b16") if arithmetic == "half" else 0
