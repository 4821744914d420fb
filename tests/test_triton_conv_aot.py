"""The convolution kernels in every configuration, compiled for GPUs that need not be here.

What the compiler makes of a kernel decides its speed: registers spilled to memory, operands loaded
two bytes at a time and tensor cores left idle show in the machine code, without a GPU.
"""

import dataclasses
from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("triton")
from triton_aot import DEVICES, SPILLED, TARGETS, channels_of, compile_all, record
from triton_kinds import kind_of

from neq_kernels import kernels
from neq_kernels.kernels import conv_tiles
from neq_kernels.kernels.configuration import TILES, Configuration
from neq_kernels.kernels.conv import Options, conv_backward

pytestmark = pytest.mark.skipif(kernels.interpreted(), reason="interpreted kernels do not compile")

DTYPES = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}
ACTIVE = 40
TENSOR_CORES = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05"}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution of 32 images whose products are cut into every tile they may be.

    ``anywhere``: which of its kernels stand for their way to load, on every GPU; the others load
    alike, at other places: what that makes of registers is seen on one GPU.
    """

    anywhere: tuple[str, ...] = ()
    inputs: int = 256
    outputs: int = 256
    side: int = 28
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    last: bool = False
    form: str = "gathered"
    split: int = 4
    weight_last: bool | None = None

    def operands(self, dtype):
        padding = self.kernel // 2
        out = (self.side + 2 * padding - self.kernel) // self.stride + 1
        shapes = (
            (32, self.outputs, out, out),
            (32, self.inputs, self.side, self.side),
            (self.outputs, self.inputs // self.groups, self.kernel, self.kernel),
        )
        weight_last = self.last if self.weight_last is None else self.weight_last
        made = [
            torch.empty(
                shape, dtype=dtype, device="meta",
                memory_format=torch.channels_last if last else torch.contiguous_format,
            )
            for shape, last in zip(shapes, (self.last, self.last, weight_last), strict=True)
        ]  # fmt: skip
        return made, ((self.stride,) * 2, (padding,) * 2, (1, 1), self.groups)


WGRAD, DGRAD = "conv_wgrad_kernel", "conv_dgrad_kernel"
KERNELS = (WGRAD, DGRAD)
NHWC = Layer(last=True, form="packed")
LAYERS = {
    # Both operands load 16 bytes at a time.
    "packed": dataclasses.replace(NHWC, anywhere=KERNELS),
    "whole": dataclasses.replace(NHWC, anywhere=(WGRAD,), split=1),
    "pointwise": Layer(kernel=1),
    # dY's elements by themselves: planes read at a shift, channels that lie apart.
    "planes": Layer(anywhere=(WGRAD,)),
    "planes, whole": Layer(anywhere=(WGRAD,), split=1),
    "gathered": Layer(last=True, anywhere=(DGRAD,)),
    "groups, packed": dataclasses.replace(NHWC, groups=4),
    # Those of X or W.
    "stride": Layer(anywhere=(WGRAD,), side=32, stride=2),
    "stride, whole": Layer(anywhere=(WGRAD,), side=32, stride=2, split=1),
    "weight in planes": dataclasses.replace(NHWC, anywhere=(DGRAD,), weight_last=False),
    "stem": Layer(inputs=3, outputs=64, side=56, kernel=7, stride=2),
    "stem, packed": Layer(inputs=3, outputs=64, side=56, kernel=7, stride=2, last=True,
                          form="packed"),
    # Both.
    "odd planes": Layer(anywhere=KERNELS, side=7),
    "odd planes, whole": Layer(anywhere=(WGRAD,), side=7, split=1),
    "groups": Layer(groups=32),
    "stem, gathered": Layer(inputs=3, outputs=64, side=56, kernel=7, stride=2, last=True),
}  # fmt: skip


@contextmanager
def arithmetic_of(name):
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    yield
    torch.backends.cudnn.allow_tf32 = before


def recorded(name, arithmetic, tile, device, kernel):
    layer = LAYERS[name]
    operands, window = layer.operands(DTYPES[arithmetic])
    options = Options(configuration=Configuration(tile, layer.split), form=layer.form)
    with arithmetic_of(arithmetic):
        launches = record(
            device, conv_backward, *operands, channels_of(layer.outputs, ACTIVE), True, *window,
            options=options,
        )  # fmt: skip
    return next(launch for launch in launches if launch.name == kernel)


def tiles(name, arithmetic, kernel):
    """The tiles that the cost function has to choose from: by how the operands are loaded."""
    kind = kind_of(recorded(name, arithmetic, TILES[arithmetic][0], DEVICES["sm_90"], kernel))
    table = (conv_tiles.NARROW, conv_tiles.MIXED, conv_tiles.WIDE)[kind.rows + kind.columns]
    return table[arithmetic]


CASES = [
    (target, arithmetic, tile, name, kernel)
    for arithmetic in ("ieee", "half", "tf32")  # what compiles longest first
    for name, layer in LAYERS.items()
    for kernel in KERNELS
    # dX is never split, and first layers need none.
    if kernel == WGRAD or (layer.split > 1 and layer.inputs > 3)
    for tile in tiles(name, arithmetic, kernel)
    for target in TARGETS
    if tile.least <= DEVICES[target].capability and (target == "sm_90" or kernel in layer.anywhere)
]


def launches(case):
    target, arithmetic, tile, name, kernel = case
    device = DEVICES[target]
    return [(recorded(name, arithmetic, tile, device, kernel), device)]


@pytest.fixture(scope="module")
def built():
    return compile_all(CASES, launches)


def label(case):
    target, arithmetic, tile, name, kernel = case
    sides = f"{tile.rows}x{tile.columns}x{tile.depth}"
    return f"{kernel}-{target}-{arithmetic}-{sides}-{name}"


@pytest.mark.parametrize("case", CASES, ids=label)
def test_every_configuration(case, built):
    target, arithmetic, tile, *_ = case
    (kernel,) = built[case]
    ((launch, _),) = launches(case)
    assert kernel.spilled <= SPILLED, f"{kernel.usage['REG']} registers do not do"
    itemsize = DTYPES[arithmetic].itemsize
    assert kernel.shared <= tile.shared(itemsize) <= DEVICES[target].shared
    wide = tile.rows >= 64
    expected = "none" if arithmetic == "ieee" else TENSOR_CORES[target] if wide else "mma"
    assert kernel.tensor_core() == expected
    # What can comes 16 bytes at a time, for every step in flight before the loop.
    kind = kind_of(launch)
    sides = tile.rows * kind.rows + tile.columns * kind.columns
    chunks = tile.depth * sides // (16 // itemsize) // (32 * tile.warps)
    assert kernel.wide_loads() >= chunks
    if kind.rows and kind.columns:
        assert kernel.wide_loads() >= 1
        assert element_loads(kernel, arithmetic) == 0


def element_loads(kernel, arithmetic):
    """Loads of single 16-bit elements; of float32, the list of channels comes so too."""
    return kernel.count(r"ld\.global[.\w:]*\.b16") if arithmetic == "half" else 0
