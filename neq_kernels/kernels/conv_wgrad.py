"""conv_wgrad: dW[index[i], c, r, s] = sum over n, p, q of dY[n, index[i], p, q] * X[n, c, h, w],
h = p * stride + r * dilation - padding and w alike; db[index[i]] = the same sum without X.

A matrix product whose rows are the active channels of a group, whose columns are the entries of
one row of dW, and whose sum runs over positions; X's patches are addressed, never stored. A program
owns one tile of it. Its columns are channels at one tap, so that which positions fall into the
padding is the same for all of them; where a group has few channels, columns run over taps and
channels in dW's own order (``FLAT``).

Positions are those of one operand, the walked one; the other is read at a shift. Loads are wide
along contiguous memory, which decides both choices:

* planes (NCHW): a step stays within an image (``PLANE``), so that its positions are neighbours in
  memory. The walked operand is X where the stride is one, since its tiles have more rows than dY's;
* channels last: every position is a row of neighbouring channels, so steps run across images.

One more tile per group of rows sums dY for the bias, further programs set frozen rows to zero, and
a long sum may be split among programs, whose partial sums ``spread_kernel`` adds in a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from neq_kernels.kernels.common import PRECISION, Launch, dot, find, on_device_of, spread
from neq_kernels.kernels.configuration import Configuration, Load, Product, Tile
from neq_kernels.kernels.conv_positions import (
    SIZES,
    extended,
    offsets,
    positions,
    reciprocals,
    steps_of,
    within,
)
from neq_kernels.kernels.conv_shape import Shape, dense_planes, load_of, unit
from neq_kernels.kernels.linear_wgrad import _zero_frozen as zero_frozen

_ZERO_ROWS, _ZERO_COLUMNS = 32, 256
# Fewer channels than this would leave most of a tap's tile empty; of channels that are contiguous,
# fewer still are worth it for their wide loads.
_FLAT_BELOW, _NARROW = 64, 32
# Each of their elements has a place, a tap and an edge of its own: the most that was counted.
_FLAT_LOAD = Load(40)


@triton.jit
def _sum(
    dy, dy_row, row_mask, first, last, images, size, strides,
    LONG: tl.constexpr, PLANE: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    sums = tl.zeros((ROWS, DEPTH), tl.float32)
    inverses = reciprocals(size, PLANE, UNIT, DEPTH)
    for step in range(first, last):
        at, inside = positions(step, images, size, inverses, LONG, PLANE, UNIT, DEPTH)
        dy_at = offsets(at, strides, PLANE, LONG)
        mask = row_mask[:, None] & inside[None, :]
        sums += tl.load(dy + (dy_row[:, None] + dy_at[None, :]), mask=mask, other=0).to(tl.float32)
    return tl.sum(sums, axis=1)


@triton.jit
def _multiply_tap(
    dy, x, dy_row, x_column, row_mask, column_mask, first, last, images, shift, stride,
    near_size, near_strides, far_size, far_strides,
    PLANE: tl.constexpr, WALK_X: tl.constexpr, POINT: tl.constexpr, LONG: tl.constexpr,
    UNIT: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tap, ``shift`` from the position of its output; near is the walked operand."""
    shift_h, shift_w = shift
    stride_h, stride_w = stride
    far_h, far_w = far_size
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    inverses = reciprocals(near_size, PLANE, UNIT, DEPTH)
    for step in range(first, last):
        at, inside = positions(step, images, near_size, inverses, LONG, PLANE, UNIT, DEPTH)
        image, i, j, place = at
        near = offsets(at, near_strides, PLANE, LONG)
        if POINT:
            far, hit = offsets(at, far_strides, True, LONG), inside
        else:
            if WALK_X:
                u, v = i - shift_h, j - shift_w
            else:
                u, v = i * stride_h + shift_h, j * stride_w + shift_w
            hit = inside & within(u, far_h) & within(v, far_w)
            far = offsets((image, u, v, place), far_strides, False, LONG)
        # Beyond the far operand's edge the near one still loads, as wide as ever: times zero, like
        # the padding that a dense convolution multiplies.
        dy_at, dy_hit = (far, hit) if WALK_X else (near, inside)
        x_at, x_hit = (near, inside) if WALK_X else (far, hit)
        dy_at, x_at = dy_row[:, None] + dy_at[None, :], x_at[:, None] + x_column[None, :]
        a = tl.load(dy + dy_at, mask=row_mask[:, None] & dy_hit[None, :], other=0)
        b = tl.load(x + x_at, mask=x_hit[:, None] & column_mask[None, :], other=0)
        acc = dot(a, b, acc, PRECISION)
    return acc


@triton.jit
def _multiply_flat(
    dy, x, dy_row, x_column, row_mask, column_mask, first, last, images, shift, stride,
    size, dy_strides, x_size, x_strides,
    PLANE: tl.constexpr, LONG: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Every column has a tap of its own: its shifts are as many as the columns."""
    shift_h, shift_w = shift
    stride_h, stride_w = stride
    in_h, in_w = x_size
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    x_column += offsets((0, shift_h, shift_w, 0), x_strides, False, LONG)
    inverses = reciprocals(size, PLANE, UNIT, DEPTH)
    for step in range(first, last):
        at, inside = positions(step, images, size, inverses, LONG, PLANE, UNIT, DEPTH)
        image, p, q, place = at
        h, w = p * stride_h, q * stride_w
        x_at = offsets((image, h, w, place), x_strides, False, LONG)[:, None] + x_column[None, :]
        hit = within(h[:, None] + shift_h[None, :], in_h) & inside[:, None]
        hit &= within(w[:, None] + shift_w[None, :], in_w)
        dy_at = dy_row[:, None] + offsets(at, dy_strides, PLANE, LONG)[None, :]
        a = tl.load(dy + dy_at, mask=row_mask[:, None] & inside[None, :], other=0)
        b = tl.load(x + x_at, mask=hit & column_mask[None, :], other=0)
        acc = dot(a, b, acc, PRECISION)
    return acc


@triton.jit(
    do_not_specialize=["images", "width", "size", "span", "bias_span", "tiles", "bits"],
    do_not_specialize_on_alignment=SIZES,
)
def conv_wgrad_kernel(
    dy, x, index, dw, db, partial, partial_sums,
    images, in_h, in_w, out_h, out_w, group_in, group_out,
    width, size, span, bias_span, tiles, bits,
    dy_n, dy_c, dy_h, dy_w, x_n, x_c, x_h, x_w,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    GROUPED: tl.constexpr, GATHER: tl.constexpr, BIAS: tl.constexpr, PARTIAL: tl.constexpr,
    FLAT: tl.constexpr, PLANE: tl.constexpr, WALK_X: tl.constexpr, POINT: tl.constexpr,
    TAPS_FIRST: tl.constexpr, LONG: tl.constexpr, DY_UNIT: tl.constexpr, X_UNIT: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    ZERO_ROWS: tl.constexpr, ZERO_COLUMNS: tl.constexpr,
):  # fmt: skip
    """See the head of the file. Programs ``[0, tiles)`` of the first axis multiply and sum, the
    others set frozen rows to zero; the second axis is the split, ``span`` steps each. ``dw`` and
    ``partial`` are rows of contiguous columns, taps before channels if ``TAPS_FIRST``. A
    unit is a power of two that divides every step in memory but the contiguous one, and how much
    is contiguous: what may be loaded at once."""
    taps: tl.constexpr = KERNEL_H * KERNEL_W
    pid = tl.program_id(0)
    split = tl.program_id(1)
    fan_in = group_in * taps
    # What the compiler may rely on for wide loads.
    if DY_UNIT > 1:
        dy_n = dy_n // DY_UNIT * DY_UNIT
        if PLANE:
            dy_c = dy_c // DY_UNIT * DY_UNIT
        else:
            dy_h, dy_w = dy_h // DY_UNIT * DY_UNIT, dy_w // DY_UNIT * DY_UNIT
    if X_UNIT > 1:
        x_n = x_n // X_UNIT * X_UNIT
        if WALK_X or POINT:
            x_c = x_c // X_UNIT * X_UNIT
        else:
            x_h, x_w = x_h // X_UNIT * X_UNIT, x_w // X_UNIT * X_UNIT
            group_in = group_in // X_UNIT * X_UNIT
    if pid < tiles:
        column_tiles = tl.cdiv(fan_in, COLUMNS) if FLAT else tl.cdiv(group_in, COLUMNS) * taps
        # Neighbours share a block of X: the rows, fewer, come again from the cache.
        row_tiles = tl.cdiv(tl.minimum(width, group_out), ROWS)
        row_tile = pid % row_tiles
        column_tile = pid // row_tiles % (column_tiles + BIAS)
        group = pid // row_tiles // (column_tiles + BIAS)
        begin, end = 0, width
        if GROUPED:
            bounds = (group + tl.arange(0, 2)) * group_out
            places, _ = find(bounds, index, width, bits)
            begin, end = tl.min(places), tl.max(places)
        first_row = begin + row_tile * ROWS
        row = first_row + tl.arange(0, ROWS)
        channel = tl.load(index + row, mask=row < end, other=-1)
        row_mask = channel >= 0
        # Padding of packed rows holds zeros, and masks must not depend on the list: wide loads.
        run = width if PLANE else width // DY_UNIT * DY_UNIT
        load_mask = row_mask if GATHER or GROUPED else row < run
        some = first_row < end
        slot = split * tl.cast(width, tl.int64) + first_row
        dy_row = extended(channel if GATHER else row, LONG) * dy_c
        image, output = (in_h, in_w), (out_h, out_w)
        dy_strides, x_strides = (dy_n, dy_h, dy_w), (x_n, x_h, x_w)
        steps = steps_of(images, image if WALK_X else output, LONG, PLANE, DEPTH)
        if column_tile < column_tiles:
            if FLAT:
                column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
                column_mask = column < fan_in
                tap = column // group_in if TAPS_FIRST else column % taps
                c = column % group_in if TAPS_FIRST else column // taps
            else:
                tap = column_tile % taps
                c = column_tile // taps * COLUMNS + tl.arange(0, COLUMNS)
                column_mask = c < group_in
                column = tap * group_in + c if TAPS_FIRST else c * taps + tap
            shift = (
                tap // KERNEL_W * DILATION_H - PADDING_H, tap % KERNEL_W * DILATION_W - PADDING_W
            )  # fmt: skip
            x_column = extended(group * group_in + c, LONG) * x_c
            first = split * span
            last = tl.where(some, tl.minimum(first + span, steps), first)
            if FLAT:
                acc = _multiply_flat(
                    dy, x, dy_row, x_column, load_mask, column_mask, first, last, images,
                    shift, (STRIDE_H, STRIDE_W), output, dy_strides, image, x_strides,
                    PLANE, LONG, DY_UNIT, PRECISION, ROWS, COLUMNS, DEPTH,
                )  # fmt: skip
            elif WALK_X:
                acc = _multiply_tap(
                    dy, x, dy_row, x_column, load_mask, column_mask, first, last, images,
                    shift, (STRIDE_H, STRIDE_W), image, x_strides, output, dy_strides,
                    PLANE, True, False, LONG, X_UNIT, PRECISION, ROWS, COLUMNS, DEPTH,
                )  # fmt: skip
            else:
                acc = _multiply_tap(
                    dy, x, dy_row, x_column, load_mask, column_mask, first, last, images,
                    shift, (STRIDE_H, STRIDE_W), output, dy_strides, image, x_strides,
                    PLANE, False, POINT, LONG, DY_UNIT, PRECISION, ROWS, COLUMNS, DEPTH,
                )  # fmt: skip
            mask = row_mask[:, None] & column_mask[None, :]
            if PARTIAL:
                within_tile = extended(tl.arange(0, ROWS), LONG)[:, None] * fan_in + column[None, :]
                tl.store(partial + slot * fan_in + within_tile, acc, mask=mask)
            else:
                at = extended(channel, LONG)[:, None] * fan_in + column[None, :]
                tl.store(dw + at, acc.to(dw.dtype.element_ty), mask=mask)
        else:
            first, steps = split * bias_span, steps_of(images, output, LONG, PLANE, DEPTH)
            last = tl.where(some, tl.minimum(first + bias_span, steps), first)
            sums = _sum(
                dy, dy_row, load_mask, first, last, images, output, dy_strides,
                LONG, PLANE, DY_UNIT, ROWS, DEPTH,
            )  # fmt: skip
            if PARTIAL:
                tl.store(partial_sums + slot + tl.arange(0, ROWS), sums, mask=row_mask)
            else:
                tl.store(db + channel, sums.to(db.dtype.element_ty), mask=row_mask)
    else:
        zero_frozen(
            pid - tiles, index, dw, db, size, width, fan_in, bits, fan_in, 1,
            BIAS, ZERO_ROWS, ZERO_COLUMNS,
        )  # fmt: skip


class Walk(NamedTuple):
    """How the kernel walks over positions, named as its constants; see the head of the file."""

    PLANE: bool
    WALK_X: bool
    POINT: bool
    FLAT: bool
    LONG: bool
    DY_UNIT: int
    X_UNIT: int

    @property
    def units(self) -> tuple[int, int]:
        """How many elements of dY and X load at once in the product."""
        return 1 if self.WALK_X else self.DY_UNIT, self.X_UNIT


def walk_of(dy: Tensor, x: Tensor, shape: Shape, packed: bool) -> Walk:
    """The walk that loads most at once; dY's channels are ``packed`` or gathered."""
    planes = dense_planes(dy)
    both = planes and dense_planes(x)
    point = both and shape.point
    flat = shape.taps > 1 and shape.group_in < (_FLAT_BELOW if x.stride(1) != 1 else _NARROW)
    walk_x = both and not point and not flat and shape.stride == (1, 1)
    # A group's channels begin anywhere among the packed ones.
    run = dy.shape[1] if packed and shape.groups == 1 else 1
    dy_unit = unit(dy, run, planes)
    x_unit = 1 if flat else unit(x, shape.group_in, walk_x or point)
    return Walk(planes, walk_x, point, flat, shape.long(dy, x), dy_unit, x_unit)


def product_of(
    dy: Tensor, x: Tensor, shape: Shape, width: int, walk: Walk, arithmetic: str
) -> Product:
    """The product that the kernel computes, as the cost function sees it: one per group, and per
    tap unless ``FLAT``. Active channels are taken to be spread evenly over the groups."""
    rows, itemsize = -(-width // shape.groups), dy.element_size()
    x_elements = shape.images * shape.groups * shape.group_in * shape.input[0] * shape.input[1]
    row_unit, column_unit = walk.units
    return Product(
        arithmetic,
        itemsize,
        rows=rows,
        columns=shape.fan_in if walk.FLAT else shape.group_in,
        depth=shape.positions,
        batch=shape.groups * (1 if walk.FLAT else shape.taps),
        row_load=load_of(dy, row_unit),
        column_load=_FLAT_LOAD if walk.FLAT else load_of(x, column_unit),
        read=(x_elements + shape.positions * width) * itemsize,
    )


class Plan(NamedTuple):
    """How to launch the kernel, and the shapes of its partial sums, if it has any."""

    launch: Launch | None
    sums: tuple[int, int, int] | None
    bias_sums: tuple[int, int]


def plan(
    dy: Tensor, x: Tensor, shape: Shape, width: int, full: bool, bias: bool, walk: Walk,
    configuration: Configuration, *, packed: bool, last: bool, arithmetic: str,
) -> Plan:  # fmt: skip
    """The plan for dy ``[N, O, P, Q]``, or with ``packed`` ``[N, width, P, Q]``, and x
    ``[N, C, H, W]``; ``full``: no channel is frozen. Rows of dW are in the order ``[R, S, C]`` if
    ``last``, else ``[C, R, S]``."""
    tile, plane = configuration.tile, walk.PLANE
    dy_steps = _steps(shape.images, shape.output, tile, plane)
    steps = _steps(shape.images, shape.input, tile, plane) if walk.WALK_X else dy_steps
    span = max(-(-steps // configuration.split), 1)
    split = max(-(-steps // span), 1)
    partial = split > 1
    tiles = _tiles(shape, width, tile, walk.FLAT, bias)
    zeros = 0 if partial or full else triton.cdiv(shape.size, _ZERO_ROWS)
    launch = Launch(conv_wgrad_kernel, (tiles + zeros, split), dict(
        images=shape.images, in_h=shape.input[0], in_w=shape.input[1],
        out_h=shape.output[0], out_w=shape.output[1],
        group_in=shape.group_in, group_out=shape.group_out,
        width=width, size=shape.size, span=span, bias_span=max(-(-dy_steps // split), 1),
        tiles=tiles, bits=width.bit_length(),
        dy_n=dy.stride(0), dy_c=dy.stride(1), dy_h=dy.stride(2),
        dy_w=1 if plane else dy.stride(3),
        x_n=x.stride(0), x_c=x.stride(1), x_h=x.stride(2),
        x_w=1 if walk.WALK_X or walk.POINT else x.stride(3),
        **shape.window(), **walk._asdict(),
        GROUPED=shape.groups > 1, GATHER=not packed, BIAS=bias, PARTIAL=partial,
        TAPS_FIRST=last, PRECISION=PRECISION[arithmetic],
        ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth,
        ZERO_ROWS=_ZERO_ROWS, ZERO_COLUMNS=_ZERO_COLUMNS,
        **tile.options,
    ))  # fmt: skip
    sums = (split, width, shape.fan_in) if partial else None
    return Plan(launch if tiles + zeros else None, sums, (split, width))


def run(plan: Plan, dy: Tensor, x: Tensor, index: Tensor, dw: Tensor, db: Tensor | None) -> None:
    """Overwrite dw ``[O, fan_in]``, contiguous, and db ``[O]``, unless None."""
    sums = bias_sums = None
    if plan.sums:
        sums = dw.new_empty(plan.sums, dtype=torch.float32)
        bias_sums = None if db is None else dw.new_empty(plan.bias_sums, dtype=torch.float32)
    with on_device_of(dy):
        if plan.launch:
            plan.launch(dy=dy, x=x, index=index, dw=dw, db=db, partial=sums, partial_sums=bias_sums)
        if sums is not None:
            spread(sums, bias_sums, index, dw, db)


def _steps(images: int, plane: tuple[int, int], tile: Tile, within_images: bool) -> int:
    size = plane[0] * plane[1]
    return images * -(-size // tile.depth) if within_images else -(-images * size // tile.depth)


def _tiles(shape: Shape, width: int, tile: Tile, flat: bool, bias: bool) -> int:
    rows = triton.cdiv(min(width, shape.group_out), tile.rows)
    if flat:
        columns = triton.cdiv(shape.fan_in, tile.columns)
    else:
        columns = triton.cdiv(shape.group_in, tile.columns) * shape.taps
    return shape.groups * rows * (columns + bias)
