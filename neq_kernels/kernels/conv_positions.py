"""The positions that convolution kernels step over, in one image or across, and where they are."""

from __future__ import annotations

import triton
import triton.language as tl

# What varies from layer to layer and from set to set. Kernels are told of multiples by their units
# alone: were each number looked at by itself, as Triton would, every packed width that is or is not
# a multiple of 16 would be compiled for.
SIZES = [
    "in_h", "in_w", "out_h", "out_w",
    *(f"{operand}_{axis}" for operand in ("dy", "x", "dx") for axis in "nchw"),
]  # fmt: skip


@triton.jit
def positions(
    step, images, height, width,
    LONG: tl.constexpr, PLANE: tl.constexpr, UNIT: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Image (int64), row, column and place in its plane of the positions of one step, and which of
    them exist; with ``PLANE`` all of one image."""
    plane = height * width
    lane = tl.arange(0, DEPTH)
    if PLANE:
        plane = plane // UNIT * UNIT
        blocks = tl.cdiv(plane, DEPTH)
        image = tl.cast(step // blocks, tl.int64)
        place = (step % blocks) * DEPTH + lane
        inside = place < plane
    else:
        everywhere = tl.cast(step, tl.int64) * DEPTH + lane if LONG else step * DEPTH + lane
        image = (everywhere // plane).to(tl.int64)
        place = (everywhere % plane).to(tl.int32)
        inside = image < images
    return image, place // width, place % width, place, inside


@triton.jit
def offsets(image, i, j, place, by_image, by_row, by_column, PLANE: tl.constexpr):
    """Where positions are in memory; ``PLANE`` promises that planes are contiguous."""
    if PLANE:
        return image * by_image + place * by_column
    return image * by_image + i.to(tl.int64) * by_row + j.to(tl.int64) * by_column


@triton.jit
def steps_of(images, height, width, LONG: tl.constexpr, PLANE: tl.constexpr, DEPTH: tl.constexpr):
    """How many steps :func:`positions` takes over all images."""
    if PLANE:
        return tl.cdiv(height * width, DEPTH) * images
    total = tl.cast(images, tl.int64) * (height * width) if LONG else images * (height * width)
    return tl.cdiv(total, DEPTH).to(tl.int32)
