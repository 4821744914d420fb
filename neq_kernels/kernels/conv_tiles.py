"""Tiles of the convolution kernels, by how many of their operands are loaded element by element.

A convolution has fewer columns than a linear layer, channels at one tap, so half-wide tiles take
the place of the flat ones where both operands load 16 bytes at a time. Whatever costs less than a
twentieth to do without, in the median of random products, was left out: each tile is a compilation
per layer. An element loaded by itself takes an
address and a predicate of its own: with one such operand, at most 32 of its elements per thread,
with two 16, or registers spill. More warps share what is left.
"""

from __future__ import annotations

from functools import lru_cache

from neq_kernels.kernels.configuration import TILES, Configuration, Product, Tile, choose
from neq_kernels.kernels.device import Device

WIDE: dict[str, tuple[Tile, ...]] = {
    "half": (
        Tile(16, 64, 64, 4, 4, registers=128),
        Tile(64, 64, 64, 4, 4),
        Tile(128, 64, 64, 8, 3, registers=168),
        # Not the widest, whose partial sums' addresses do not fit beside its outputs.
        *TILES["half"][2:4],
    ),
    "tf32": (Tile(16, 64, 64, 4, 3, registers=168), Tile(64, 64, 32, 4, 4), *TILES["tf32"][2:]),
    "ieee": (TILES["ieee"][0], Tile(64, 64, 16, 8, 3, registers=128)),
}
MIXED: dict[str, tuple[Tile, ...]] = {
    "half": (
        Tile(16, 64, 64, 4, 4, registers=168),
        Tile(64, 64, 64, 4, 3),
        Tile(64, 128, 64, 8, 3, registers=255),
        Tile(128, 128, 32, 8, 4, registers=255),
    ),
    "tf32": (
        Tile(16, 64, 32, 4, 4, registers=168),
        Tile(64, 64, 32, 4, 3, registers=255),
        Tile(64, 128, 32, 8, 3, registers=255),
    ),
    "ieee": (Tile(16, 32, 32, 4, 3, registers=168), Tile(16, 64, 16, 4, 3, registers=224)),
}
NARROW: dict[str, tuple[Tile, ...]] = {
    "half": (
        Tile(16, 32, 64, 4, 3),
        Tile(16, 64, 64, 4, 3),
        Tile(32, 64, 32, 4, 3),
        Tile(64, 64, 32, 8, 3),
        Tile(64, 128, 32, 8, 3),
    ),
    "tf32": (
        Tile(16, 32, 64, 4, 3, registers=168),
        Tile(32, 64, 32, 4, 3),
        Tile(64, 64, 32, 8, 3, registers=168),
        Tile(64, 128, 32, 8, 3, registers=255),
    ),
    "ieee": (Tile(16, 32, 16, 4, 3, registers=168), Tile(16, 64, 16, 4, 3, registers=224)),
}


def tiles_for(product: Product) -> tuple[Tile, ...]:
    """The tiles that a convolution's product may be cut into."""
    return (WIDE, MIXED, NARROW)[product.gathered + product.scattered][product.arithmetic]


@lru_cache(maxsize=4096)
def configuration_for(product: Product, device: Device) -> Configuration:
    """The configuration of least predicted cost."""
    return choose(product, device, tiles_for(product))
