"""conv_dgrad over the active channels: dX[n, c, h, w] = sum over i, r, s of
dY[n, index[i], p, q] * W[index[i], c, r, s], p * stride = h + padding - r * dilation and q alike.

A matrix product whose rows are positions of dX, whose columns are the channels of a group of X, and
whose sum runs over taps and, within each, over the active channels; rows of W are gathered.
A program owns one tile of it and writes it once: where nothing adds up, zero.

With a stride, a position is reached by only some taps, the same ones for all positions whose
``h + padding`` and ``w + padding`` leave the same remainder. Programs therefore take the positions
of one such phase, and step over the taps that reach it.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from neq_kernels.kernels.common import PRECISION, Launch, dot, find
from neq_kernels.kernels.configuration import Configuration, Product
from neq_kernels.kernels.conv_positions import SIZES, extended, offsets, within
from neq_kernels.kernels.conv_shape import Shape, dense_planes, load_of, unit


@triton.jit
def _taps(start, kernel, STRIDE: tl.constexpr, DILATION: tl.constexpr, EVERY: tl.constexpr):
    """The first tap that reaches positions ``start`` from the padded edge, and how many do: taps
    ``EVERY`` apart, for the multiples of a dilation repeat their remainders so often."""
    first = kernel
    for k in tl.static_range(EVERY):
        tap = EVERY - 1 - k
        first = tl.where(
            (start + STRIDE * DILATION * EVERY - tap * DILATION) % STRIDE == 0, tap, first
        )
    return first, tl.cdiv(tl.maximum(kernel - first, 0), EVERY)


@triton.jit(
    do_not_specialize=["images", "width", "tiles", "bits"],
    do_not_specialize_on_alignment=SIZES,
)
def conv_dgrad_kernel(
    dy, weight, index, dx,
    images, in_h, in_w, out_h, out_w, group_in, group_out, width, tiles, bits,
    dy_n, dy_c, dy_h, dy_w, dx_n, dx_c, dx_h, dx_w, w_o, w_c, w_r, w_s,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    EVERY_H: tl.constexpr, EVERY_W: tl.constexpr,
    GROUPED: tl.constexpr, GATHER: tl.constexpr, PLANE: tl.constexpr, LONG: tl.constexpr,
    DY_UNIT: tl.constexpr, DX_UNIT: tl.constexpr, W_UNIT: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """See the head of the file. The first axis: a block of channels, and ``tiles`` of them for each
    block of positions; the second: the phase; the third: the group. ``PLANE``: blocks of positions
    stay within an image, and positions are neighbours in the memory of dY and dX."""
    # What the compiler may rely on for wide accesses.
    if DY_UNIT > 1:
        dy_n = dy_n // DY_UNIT * DY_UNIT
        if PLANE:
            dy_c = dy_c // DY_UNIT * DY_UNIT
        else:
            dy_h, dy_w = dy_h // DY_UNIT * DY_UNIT, dy_w // DY_UNIT * DY_UNIT
            width = width // DY_UNIT * DY_UNIT
    if DX_UNIT > 1:
        dx_n = dx_n // DX_UNIT * DX_UNIT
        if PLANE:
            dx_c = dx_c // DX_UNIT * DX_UNIT
        else:
            dx_h, dx_w = dx_h // DX_UNIT * DX_UNIT, dx_w // DX_UNIT * DX_UNIT
    if W_UNIT > 1:
        w_o = w_o // W_UNIT * W_UNIT
        group_in = group_in // W_UNIT * W_UNIT
        w_r, w_s = w_r // W_UNIT * W_UNIT, w_s // W_UNIT * W_UNIT
    block = tl.program_id(0) // tiles
    column = (tl.program_id(0) % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    column_mask = column < group_in
    phase_h, phase_w = tl.program_id(1) // STRIDE_W, tl.program_id(1) % STRIDE_W
    group = tl.program_id(2)
    # Positions of this phase: h = phase_h + STRIDE_H * i.
    lane = tl.arange(0, ROWS)
    if PLANE:
        plane = in_h * in_w // DY_UNIT * DY_UNIT
        blocks = tl.cdiv(plane, ROWS)
        image = block // blocks
        place = (block % blocks) * ROWS + lane
        h, w = place // in_w, place % in_w
        inside = place < plane
    else:
        many_h = tl.maximum(tl.cdiv(in_h - phase_h, STRIDE_H), 1)
        many_w = tl.maximum(tl.cdiv(in_w - phase_w, STRIDE_W), 1)
        row = tl.cast(block, tl.int64) * ROWS + lane if LONG else block * ROWS + lane
        image = row // (many_h * many_w)
        place = (row % (many_h * many_w)).to(tl.int32)
        h = phase_h + STRIDE_H * (place // many_w)
        w = phase_w + STRIDE_W * (place % many_w)
        inside = (image < images) & (h < in_h) & (w < in_w)
    begin, end = 0, width
    if GROUPED:
        places, _ = find((group + tl.arange(0, 2)) * group_out, index, width, bits)
        begin, end = tl.min(places), tl.max(places)
    first_r, many_r = _taps(phase_h + PADDING_H, KERNEL_H, STRIDE_H, DILATION_H, EVERY_H)
    first_s, many_s = _taps(phase_w + PADDING_W, KERNEL_W, STRIDE_W, DILATION_W, EVERY_W)
    blocks_of_channels = tl.cdiv(end - begin, DEPTH)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    w_column = extended(column, LONG) * w_c
    for step in range(many_r * many_s * blocks_of_channels):
        tap = step // blocks_of_channels
        r = first_r + tap // many_s * EVERY_H
        s = first_s + tap % many_s * EVERY_W
        i = begin + (step % blocks_of_channels) * DEPTH + tl.arange(0, DEPTH)
        channel = tl.load(index + i, mask=i < end, other=-1)
        active = channel >= 0
        # Exact for the taps of this phase; elsewhere rounding is of no matter.
        p = (h + PADDING_H - r * DILATION_H) // STRIDE_H
        q = (w + PADDING_W - s * DILATION_W) // STRIDE_W
        hit = inside if PLANE else inside & within(p, out_h) & within(q, out_w)
        dy_at = offsets((image, p, q, place), (dy_n, dy_h, dy_w), PLANE, LONG)
        # Padding of packed rows holds zeros, and masks must not depend on the list: wide loads.
        dy_mask = active if GATHER or GROUPED else i < end
        dy_at = dy_at[:, None] + (extended(channel if GATHER else i, LONG) * dy_c)[None, :]
        a = tl.load(dy + dy_at, mask=hit[:, None] & dy_mask[None, :], other=0)
        w_row = extended(channel, LONG) * w_o + extended(r, LONG) * w_r + extended(s, LONG) * w_s
        w_at = w_row[:, None] + w_column[None, :]
        b = tl.load(weight + w_at, mask=active[:, None] & column_mask[None, :], other=0)
        acc = dot(a, b, acc, PRECISION)
    dx_at = offsets((image, h, w, place), (dx_n, dx_h, dx_w), PLANE, LONG)[:, None]
    dx_at += (extended(group * group_in + column, LONG) * dx_c)[None, :]
    mask = inside[:, None] & column_mask[None, :]
    tl.store(dx + dx_at, acc.to(dx.dtype.element_ty), mask=mask)


class Walk(NamedTuple):
    """How the kernel reaches its operands, named as its constants."""

    PLANE: bool
    LONG: bool
    DY_UNIT: int
    DX_UNIT: int
    W_UNIT: int

    @property
    def units(self) -> tuple[int, int]:
        """How many elements of dY and W load at once."""
        return self.DY_UNIT, self.W_UNIT


def walk_of(dy: Tensor, weight: Tensor, dx: Tensor, shape: Shape, packed: bool) -> Walk:
    """The walk that loads most at once; dY's channels are ``packed`` or gathered."""
    plane = shape.point and dense_planes(dy) and dense_planes(dx)
    # A group's channels begin anywhere among the packed ones.
    run = dy.shape[1] if packed and shape.groups == 1 else 1
    dx_unit, w_unit = unit(dx, shape.group_in, plane), unit(weight, shape.group_in, False)
    return Walk(plane, shape.long(dy, weight, dx), unit(dy, run, plane), dx_unit, w_unit)


def product_of(
    dy: Tensor, weight: Tensor, shape: Shape, width: int, walk: Walk, arithmetic: str
) -> Product:
    """The product that the kernel computes, as the cost function sees it: one per group and phase.
    Active channels are taken to be spread evenly over the groups, taps over the phases."""
    phases, itemsize = shape.stride[0] * shape.stride[1], dy.element_size()
    inputs = shape.images * shape.input[0] * shape.input[1]
    return Product(
        arithmetic,
        itemsize,
        rows=-(-inputs // phases),
        columns=shape.group_in,
        depth=max(-(-width // shape.groups) * shape.taps // phases, 1),
        batch=shape.groups * phases,
        row_load=load_of(dy, walk.units[0]),
        column_load=load_of(weight, walk.units[1]),
        splittable=False,
        read=(shape.positions * width + width * shape.fan_in) * itemsize,
    )


def plan(
    dy: Tensor, weight: Tensor, dx: Tensor, shape: Shape, width: int, walk: Walk,
    configuration: Configuration, *, packed: bool, arithmetic: str,
) -> Launch | None:  # fmt: skip
    """How to launch the kernel on dy ``[N, O, P, Q]``, or with ``packed`` ``[N, width, P, Q]``,
    weight ``[O, C/groups, R, S]`` and dx ``[N, C, H, W]``, all of any strides."""
    tile, plane = configuration.tile, walk.PLANE
    (in_h, in_w), (stride_h, stride_w) = shape.input, shape.stride
    if plane:
        blocks = shape.images * triton.cdiv(in_h * in_w, tile.rows)
    else:
        rows = shape.images * triton.cdiv(in_h, stride_h) * triton.cdiv(in_w, stride_w)
        blocks = triton.cdiv(rows, tile.rows)
    tiles = triton.cdiv(shape.group_in, tile.columns)
    phases = 1 if plane else stride_h * stride_w
    if not blocks * tiles:
        return None
    return Launch(conv_dgrad_kernel, (blocks * tiles, phases, shape.groups), dict(
        images=shape.images, in_h=in_h, in_w=in_w, out_h=shape.output[0], out_w=shape.output[1],
        group_in=shape.group_in, group_out=shape.group_out,
        width=width, tiles=tiles, bits=width.bit_length(),
        dy_n=dy.stride(0), dy_c=dy.stride(1), dy_h=dy.stride(2),
        dy_w=1 if plane else dy.stride(3),
        dx_n=dx.stride(0), dx_c=dx.stride(1), dx_h=dx.stride(2),
        dx_w=1 if plane else dx.stride(3),
        w_o=weight.stride(0), w_c=weight.stride(1), w_r=weight.stride(2), w_s=weight.stride(3),
        **shape.window(),
        EVERY_H=stride_h // gcd(stride_h, shape.dilation[0]),
        EVERY_W=stride_w // gcd(stride_w, shape.dilation[1]),
        **walk._asdict(), GROUPED=shape.groups > 1, GATHER=not packed,
        PRECISION=PRECISION[arithmetic],
        ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth,
        **tile.options,
    ))  # fmt: skip
