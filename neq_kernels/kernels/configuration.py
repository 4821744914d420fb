"""How a matrix product is cut into programs: a small set of tiles, and the cost that picks one.

The product is ``rows x columns`` outputs, each a sum of ``depth`` terms. A program owns one tile of
outputs and walks along the sum; with a split, that many programs share a tile's sum, and a second
kernel adds their partial sums in a fixed order. Nothing is measured and nothing searched while
training: :func:`choose` is arithmetic, remembered per product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from neq_kernels.kernels.device import Device


@dataclass(frozen=True)
class Tile:
    """Outputs of one program and terms of one step, with the launch options they were made for.

    Attributes:
        least: the lowest compute capability whose registers and tensor cores carry the tile.
        gathers, scatters: whether registers are left to load the rows' operand, or the columns',
            one element at a time.
        registers: how many a thread may have; left alone, the assembler spills a few values where
            that lets another program in.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    least: tuple[int, int] = (8, 0)
    gathers: bool = True
    scatters: bool = True
    registers: int | None = None

    def shared(self, itemsize: int) -> int:
        """Bytes of shared memory: the operands of every step in flight, and barriers."""
        return self.stages * self.depth * (self.rows + self.columns) * itemsize + _BARRIERS

    @property
    def options(self) -> dict[str, int]:
        """What Triton must be told at the launch."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        return options | ({"maxnreg": self.registers} if self.registers else {})


HOPPER = (9, 0)
TILES: dict[str, tuple[Tile, ...]] = {
    "half": (
        # Few rows: the other operand streams by once, so what counts is bytes in flight.
        Tile(16, 128, 128, 4, 3, scatters=False, registers=224),
        Tile(32, 128, 64, 4, 4, registers=255),
        # From 64 rows on a warp group's own instruction (wgmma) is filled.
        Tile(64, 128, 64, 4, 4, scatters=False, registers=255),
        # Half the operand bytes per multiplication: the plain choice for large products.
        Tile(128, 128, 64, 8, 3, scatters=False),
        # Three quarters of that; 128 accumulators a thread, too many before Hopper.
        Tile(128, 256, 64, 8, 3, HOPPER, gathers=False, scatters=False),
    ),
    # Twice the bytes per term: half the depth.
    "tf32": (
        Tile(16, 128, 64, 4, 3, scatters=False, registers=224),
        Tile(32, 128, 32, 4, 4, registers=224),
        Tile(64, 128, 32, 4, 3, gathers=False, scatters=False, registers=224),
        Tile(128, 128, 32, 8, 3, scatters=False, registers=255),
    ),
    # No tensor cores: outputs are registers, a thread multiplies them itself.
    "ieee": (
        Tile(16, 64, 32, 4, 3, registers=168),
        Tile(64, 64, 16, 4, 3, gathers=False, registers=224),
    ),
}
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

# Nanoseconds, guessed generously: what one step costs besides its arithmetic and its bytes, what a
# program costs besides its steps, and what a second kernel costs besides its bytes.
STEP, PROGRAM, KERNEL = 60.0, 1500.0, 3000.0
_BARRIERS = 4608
# Tensor cores wait on barriers and on the operands of the next step.
REACHED = 0.75
# index_select and masked_fill; the native kernel is one.
PACK_KERNELS = 2
# Instructions that a thread issues in a step besides those of its loads: where the step is, and
# where it ends. Counted in machine code for sm_90, like those of a Load.
STEP_INSTRUCTIONS = 100
# What a multiprocessor issues in a cycle: one instruction to each of four warps.
ISSUED = 128


class Load(NamedTuple):
    """How an operand comes from memory.

    Attributes:
        instructions: that a thread issues for an element: for its address, its mask and its way to
            shared memory. 16 bytes that come at a time share theirs.
        fetched: bytes that come from the cache with an element, unless just its own.
    """

    instructions: int
    fetched: int = 0


# Sixteen bytes at a time; single elements side by side, as in planes read at a shift; and apart,
# each in a sector of 32 bytes that is shared with a neighbour more often than not.
WIDE, BESIDE, APART = Load(1), Load(8), Load(8, 16)


@dataclass(frozen=True)
class Product:
    """What decides the cost of ``rows x columns`` sums of ``depth`` terms.

    Attributes:
        arithmetic: "half", "tf32" or "ieee", as in :class:`~neq_kernels.kernels.device.Device`.
        itemsize: bytes of an element of the operands.
        rows, columns, depth: of one product.
        batch: how many such products there are, as in the groups of a convolution.
        row_load, column_load: how the rows' operand and the columns' are loaded.
        splittable: whether partial sums have a second kernel that adds them.
        read: bytes of the operands in memory; 0 for two plain matrices. An implicit product, such
            as a convolution, reads fewer than it multiplies.
    """

    arithmetic: str
    itemsize: int
    rows: int
    columns: int
    depth: int
    batch: int = 1
    row_load: Load = WIDE
    column_load: Load = WIDE
    splittable: bool = True
    read: int = 0

    @property
    def gathered(self) -> bool:
        """Whether the rows' operand is loaded one element at a time."""
        return self.row_load is not WIDE

    @property
    def scattered(self) -> bool:
        """Whether the columns' operand is."""
        return self.column_load is not WIDE


@dataclass(frozen=True)
class Configuration:
    """A tile, and how many programs share the sum of each."""

    tile: Tile
    split: int = 1

    def span(self, depth: int) -> int:
        """Terms per program: whole steps, the same for all programs but the last."""
        return max(_ceil(_ceil(depth, self.tile.depth), self.split), 1) * self.tile.depth


@lru_cache(maxsize=4096)
def choose(
    product: Product, device: Device, tiles: tuple[Tile, ...] | None = None
) -> Configuration:
    """The configuration of least :func:`cost`, among ``tiles`` if given.

    Raises:
        ValueError: no tile fits this device.
    """
    able = [
        Configuration(tile, split)
        for tile in (TILES[product.arithmetic] if tiles is None else tiles)
        if tile.least <= device.capability
        and tile.shared(product.itemsize) <= device.shared
        and (tile.gathers or not product.gathered)
        and (tile.scatters or not product.scattered)
        for split in (SPLITS if product.splittable else SPLITS[:1])
        if split == 1 or split * tile.depth <= product.depth
    ]
    if not able:
        raise ValueError(
            f"device: expected one whose programs have shared memory for a tile of "
            f"{product.arithmetic}, got {device}; use another backend"
        )
    return min(able, key=lambda configuration: cost(product, configuration, device))


def cost(product: Product, configuration: Configuration, device: Device) -> float:
    """Nanoseconds, predicted: waves of programs or bytes of memory, whichever takes longer, and
    the second kernel of a split sum.

    A wave is as many programs as the multiprocessors hold. Those that share a multiprocessor share
    its arithmetic and its path to the cache, and hide each other's waiting.
    """
    tile, split = configuration.tile, configuration.split
    tiles = product.batch * _ceil(product.rows, tile.rows) * _ceil(product.columns, tile.columns)
    programs = tiles * split
    resident = _resident(tile, product.itemsize, device)
    waves = max(_ceil(programs, device.processors * resident), 1)
    # Programs of the last wave spread out evenly.
    together = min(resident, _ceil(programs, device.processors * waves))
    steps = configuration.span(product.depth) // tile.depth
    step = _step(product, tile, device)
    computed = waves * (max(together * step, step + STEP) * steps + PROGRAM)
    terms = product.depth * (product.rows + product.columns) * product.batch
    outputs = product.rows * product.columns * product.batch
    read = product.read or terms * product.itemsize
    moved = (read + outputs * product.itemsize) / device.bandwidth
    total = max(computed, moved)
    if split > 1:
        # Written and read in float32, mostly from the cache; then the result.
        partial = split * outputs * 4
        total += KERNEL + 2 * partial / device.bandwidth
    return total


@lru_cache(maxsize=4096)
def cheaper_form(
    gathered: tuple[Product, ...], packed: tuple[Product, ...], moved: int, device: Device
) -> str:
    """Whether products that need the same channels of dY had better gather them themselves, or
    have them packed first, which moves that many bytes: ``"gathered"`` or ``"packed"``."""

    def together(products: tuple[Product, ...]) -> float:
        return sum(cost(product, choose(product, device), device) for product in products)

    packing = PACK_KERNELS * KERNEL + moved / device.bandwidth
    return "gathered" if together(gathered) <= together(packed) + packing else "packed"


def _step(product: Product, tile: Tile, device: Device) -> float:
    """Nanoseconds of one step of a program that has its multiprocessor to itself: arithmetic, bytes
    from the cache or instructions issued, whichever takes longest."""
    flops = 2 * tile.rows * tile.columns * tile.depth
    # From Hopper on, tensor cores want 64 rows; fewer go through the older, slower instructions.
    older = 0.5 if tile.rows < 64 and device.capability >= HOPPER else 1.0
    arithmetic = flops / (device.flops[product.arithmetic] * REACHED * older)
    sides = ((tile.rows, product.row_load), (tile.columns, product.column_load))
    loaded = sum(side * (load.fetched or product.itemsize) for side, load in sides)
    issued = instructions(product, tile) / (ISSUED * device.clock * REACHED)
    return max(arithmetic, tile.depth * loaded / device.cache, issued)


def instructions(product: Product, tile: Tile) -> int:
    """What all threads of a program issue in one step."""
    rows, columns = product.row_load.instructions, product.column_load.instructions
    loads = tile.depth * (tile.rows * rows + tile.columns * columns)
    return 32 * tile.warps * STEP_INSTRUCTIONS + loads


def _resident(tile: Tile, itemsize: int, device: Device) -> int:
    """Programs that one multiprocessor holds at a time: bounded by shared memory and registers."""
    return max(1, min(device.shared // tile.shared(itemsize), 16 // tile.warps))


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
