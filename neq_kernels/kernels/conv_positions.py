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
def reciprocal(by):
    """What :func:`divide` multiplies with, and shifts by, instead of dividing by ``by``: worked out
    once, before a loop. Granlund and Montgomery, "Division by invariant integers using
    multiplication" (1994), figure 4.1."""
    bits = by * 0
    for k in tl.static_range(31):
        bits += (by > (1 << k)).to(tl.int32)
    power = tl.cast(1, tl.int64) << bits
    return (((power - by) << 32) // by + 1).to(tl.uint32), bits


@triton.jit
def divide(number, by, inverse):
    """Quotient and remainder of a number below 2^31, given ``inverse = reciprocal(by)``: four
    instructions where division takes some twenty-five."""
    factor, bits = inverse
    quotient = (tl.umulhi(tl.cast(number, tl.uint32), factor).to(tl.int32) + number) >> bits
    return quotient, number - quotient * by


@triton.jit
def within(position, size):
    """``0 <= position < size`` in one comparison."""
    return position.to(tl.uint32, bitcast=True) < tl.cast(size, tl.uint32)


@triton.jit
def reciprocals(size, PLANE: tl.constexpr, UNIT: tl.constexpr, DEPTH: tl.constexpr):
    """What :func:`positions` divides with."""
    height, width = size
    plane = height * width
    if PLANE:
        plane = tl.cdiv(plane // UNIT * UNIT, DEPTH)
    return reciprocal(plane), reciprocal(width)


@triton.jit
def positions(
    step, images, size, inverses,
    LONG: tl.constexpr, PLANE: tl.constexpr, UNIT: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Image, row, column and place in its plane (of ``size``) of the positions of one step, and
    which of them exist; with ``PLANE`` all of one image. ``inverses``: their reciprocals."""
    height, width = size
    by_plane, by_width = inverses
    plane = height * width
    lane = tl.arange(0, DEPTH)
    if PLANE:
        plane = plane // UNIT * UNIT
        image, block = divide(step, tl.cdiv(plane, DEPTH), by_plane)
        place = block * DEPTH + lane
        inside = place < plane
    else:
        if LONG:
            everywhere = tl.cast(step, tl.int64) * DEPTH + lane
            image, place = everywhere // plane, (everywhere % plane).to(tl.int32)
        else:
            image, place = divide(step * DEPTH + lane, plane, by_plane)
        inside = image < images
    row, column = divide(place, width, by_width)
    return (image, row, column, place), inside


@triton.jit
def extended(number, LONG: tl.constexpr):
    """``number`` as offsets are made of: 64 bits only where LONG, as they take twice the registers
    and four times the instructions."""
    return tl.cast(number, tl.int64) if LONG else number


@triton.jit
def offsets(at, strides, PLANE: tl.constexpr, LONG: tl.constexpr):
    """Where the positions ``at`` are in memory; ``PLANE`` promises that planes are contiguous."""
    image, i, j, place = at
    by_image, by_row, by_column = strides
    start = extended(image, LONG) * by_image
    if PLANE:
        return start + extended(place, LONG) * by_column
    return start + extended(i, LONG) * by_row + extended(j, LONG) * by_column


@triton.jit
def steps_of(images, size, LONG: tl.constexpr, PLANE: tl.constexpr, DEPTH: tl.constexpr):
    """How many steps :func:`positions` takes over all images."""
    height, width = size
    if PLANE:
        return tl.cdiv(height * width, DEPTH) * images
    total = tl.cast(images, tl.int64) * (height * width) if LONG else images * (height * width)
    return tl.cdiv(total, DEPTH).to(tl.int32)
