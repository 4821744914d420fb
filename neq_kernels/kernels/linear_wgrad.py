"""linear_wgrad: dW[index[i], :] = sum_m dY[m, index[i]] * X[m, :], and db[index[i]] without X.

A matrix product whose rows are the active channels, whose columns are X's, and whose sum runs over
the tokens. A program owns one tile of it. The channels come in one of two forms:

* gathered: the tile reads dY[m, index[i]] itself. Best where tokens are contiguous in dY, as then
  the gathered rows are; across contiguous channels it loads single elements, and is left to
  problems too small to pay for packing;
* packed: dY has been packed to [tokens, width], and whole blocks are read.

Either way rows are written through the index into a full-shape dW, whose frozen rows further
programs of the same launch set to zero. Few rows and many tokens: the sum is split among programs,
each writes partial sums, and ``spread_kernel`` adds them in a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from neq_kernels.active import Lists
from neq_kernels.kernels.common import (
    PRECISION,
    Launch,
    arithmetic,
    check,
    check_tokens,
    dot,
    far,
    find,
    load_of,
    load_of_packed,
    offsets,
    on_device_of,
    packing_bytes,
    remembered,
    spread,
    width_of,
)
from neq_kernels.kernels.configuration import Configuration, Product, cheaper_form, choose
from neq_kernels.kernels.device import Device, device_of
from neq_kernels.reference import Pack, as_rows, pack_channels

_ZERO_ROWS, _ZERO_COLUMNS = 32, 256
FORMS = ("gathered", "packed")


@triton.jit
def _multiply(
    dy, x, dy_offset, x_offset, row_mask, column_mask, tokens, dy_step, x_step,
    BIAS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile of dW, and the sums of dY where BIAS; ``dy`` and ``x`` point to the first token."""
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    sums = tl.zeros((ROWS,), tl.float32)
    token = tl.arange(0, DEPTH)
    for start in range(0, tokens, DEPTH):
        inside = token < tokens - start
        a = tl.load(dy + dy_offset, mask=row_mask[:, None] & inside[None, :], other=0)
        b = tl.load(x + x_offset, mask=inside[:, None] & column_mask[None, :], other=0)
        acc = dot(a, b, acc, PRECISION)
        if BIAS:
            sums += tl.sum(a.to(tl.float32), axis=1)
        dy += dy_step
        x += x_step
    return acc, sums


@triton.jit
def _zero_frozen(
    pid, index, dw, db, size, width, fan_in, halvings, dw_row, dw_column,
    BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = pid * ROWS + tl.arange(0, ROWS)
    _, active = find(row, index, width, halvings)
    frozen = (row < size) & (active == 0)
    zeros = tl.zeros((ROWS, COLUMNS), dw.dtype.element_ty)
    rows = dw + row.to(tl.int64)[:, None] * dw_row
    for start in range(0, fan_in, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        target = rows + column.to(tl.int64)[None, :] * dw_column
        tl.store(target, zeros, mask=frozen[:, None] & (column < fan_in)[None, :])
    if BIAS:
        tl.store(db + row, tl.zeros((ROWS,), db.dtype.element_ty), mask=frozen)


@triton.jit(do_not_specialize=["units", "size", "blocks", "tiles", "halvings"])
def linear_wgrad_kernel(
    dy, x, index, dw, db, partial, partial_sums,
    tokens, units, size, fan_in, blocks, tiles, halvings,
    dy_token, dy_channel, x_token, x_column, dw_row, dw_column,
    GATHER: tl.constexpr, BIAS: tl.constexpr, PARTIAL: tl.constexpr, FAR: tl.constexpr,
    ALIGNED: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    ZERO_ROWS: tl.constexpr, ZERO_COLUMNS: tl.constexpr,
):  # fmt: skip
    """See the head of the file. Programs ``[0, tiles)`` of the first axis multiply, the others set
    frozen rows to zero; the second axis is the split, ``blocks`` blocks of tokens each.

    The width is ``units`` times ALIGNED, so that the compiler knows what it is a multiple of.
    Within a tile addresses are 32-bit offsets from a 64-bit base, 64-bit ones only where FAR.
    """
    pid = tl.program_id(0)
    width = units * ALIGNED
    if pid < tiles:
        part = tl.program_id(1)
        # Neighbours share a block of X: the rows, fewer, come again from the cache.
        row_tiles = tl.cdiv(width, ROWS)
        first_row = (pid % row_tiles) * ROWS
        row = first_row + tl.arange(0, ROWS)
        column = (pid // row_tiles) * COLUMNS + tl.arange(0, COLUMNS)
        channel = tl.load(index + row, mask=row < width, other=-1)
        active = channel >= 0
        column_mask = column < fan_in
        if GATHER:
            source, row_mask = channel, active
        else:
            # Whole blocks, padding and all: a mask made of data would tear the loads up.
            source, row_mask, dy_token = row, row < width, width
        token = tl.arange(0, DEPTH)
        dy_offset = offsets(source, token, dy_channel, dy_token, FAR)
        x_offset = offsets(token, column, x_token, x_column, FAR)
        dy_step = tl.cast(DEPTH, tl.int64) * dy_token
        x_step = tl.cast(DEPTH, tl.int64) * x_token
        dy += part * blocks * dy_step
        x += part * blocks * x_step
        left = tl.minimum(blocks * DEPTH, tokens - part * blocks * DEPTH)
        if BIAS and pid < row_tiles:
            acc, sums = _multiply(
                dy, x, dy_offset, x_offset, row_mask, column_mask, left, dy_step, x_step,
                True, PRECISION, ROWS, COLUMNS, DEPTH,
            )  # fmt: skip
            if PARTIAL:
                tl.store(partial_sums + part * width + row, sums, mask=active)
            else:
                tl.store(db + channel, sums.to(db.dtype.element_ty), mask=active)
        else:
            acc, sums = _multiply(
                dy, x, dy_offset, x_offset, row_mask, column_mask, left, dy_step, x_step,
                False, PRECISION, ROWS, COLUMNS, DEPTH,
            )  # fmt: skip
        mask = active[:, None] & column_mask[None, :]
        if PARTIAL:
            start = (part * tl.cast(width, tl.int64) + first_row) * fan_in
            target = partial + start + offsets(row - first_row, column, fan_in, 1, FAR)
            tl.store(target, acc, mask=mask)
        else:
            target = dw + offsets(channel, column, dw_row, dw_column, FAR)
            tl.store(target, acc.to(dw.dtype.element_ty), mask=mask)
    else:
        _zero_frozen(
            pid - tiles, index, dw, db, size, width, fan_in, halvings, dw_row, dw_column,
            BIAS, ZERO_ROWS, ZERO_COLUMNS,
        )  # fmt: skip


def linear_wgrad(
    dy: Tensor,
    x: Tensor,
    lists: Lists,
    bias: bool,
    columns: bool,
    pack: Pack = pack_channels,
    *,
    dtype: torch.dtype | None = None,
    configuration: Configuration | None = None,
    form: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The operator of :func:`neq_kernels.reference.linear_wgrad`, same arguments and results.

    Args:
        dtype: of the results; dy's unless given. float32 keeps what is accumulated.
        configuration: instead of the one of least predicted cost.
        form: "gathered" or "packed", instead of the one of less predicted cost.

    Raises:
        TypeError: dy and x differ in dtype, or it is not one that the kernels serve.
        ValueError: dy, x or the lists are not on one device, or their shapes do not match.
    """
    dy, x = as_rows(dy), as_rows(x)
    way = arithmetic(dy.dtype)
    form = form_of(dy, x, lists.padded, width_of(lists), way, device_of(dy), form)
    if form == "packed":
        width = width_of(lists)
        dy, _ = pack(dy, lists.padded[:width], width, 1, False)
    return launch(dy, x, lists, bias, columns, form, dtype or dy.dtype, configuration)


@remembered
def form_of(
    dy: Tensor, x: Tensor, index: Tensor, width: int, arithmetic: str, device: Device,
    form: str | None,
) -> str:  # fmt: skip
    """The form to have dY in, unless given: ``dy`` ``[tokens, O]``, x ``[tokens, I]``.

    Raises:
        TypeError, ValueError: as :func:`linear_wgrad`.
    """
    check(dy, index, x=x)
    check_tokens(dy, x)
    if form:
        return form
    gathered, packed = (product(dy, x, width, arithmetic, name) for name in FORMS)
    return cheaper_form((gathered,), (packed,), packing_bytes(dy, width), device)


def product(dy: Tensor, x: Tensor, width: int, arithmetic: str, form: str) -> Product:
    """What the cost function must know; ``dy`` ``[tokens, O]``, or packed, x ``[tokens, I]``."""
    return Product(
        arithmetic, dy.element_size(), rows=width, columns=x.shape[1], depth=x.shape[0],
        row_load=load_of(dy, 0) if form == "gathered" else load_of_packed(width),
        column_load=load_of(x, 1),
    )  # fmt: skip


class Plan(NamedTuple):
    """How to launch the kernel, and the shapes of its partial sums."""

    launch: Launch | None
    sums: tuple[int, int, int]
    bias_sums: tuple[int, int]
    partial: bool


@remembered
def plan(
    dy: Tensor, x: Tensor, size: int, width: int, full: bool, bias: bool, columns: bool, form: str,
    arithmetic: str, configuration: Configuration | None, device: Device,
) -> Plan:  # fmt: skip
    """The plan for ``dy`` in the ``form`` it is in; ``full``: no channel is frozen."""
    tokens, fan_in = x.shape
    configuration = configuration or choose(product(dy, x, width, arithmetic, form), device)
    tile = configuration.tile
    blocks = configuration.span(tokens) // tile.depth
    split = max(triton.cdiv(tokens, blocks * tile.depth), 1)
    # Columns of dW are rows of the product: stored one by one through the index they would touch
    # all of dW twice, so they too go through the second kernel, which writes whole blocks.
    partial = split > 1 or columns
    # One column of tiles at least: without inputs there still is a bias.
    tiles = triton.cdiv(width, tile.rows) * max(triton.cdiv(fan_in, tile.columns), 1)
    zeros = 0 if partial or full else triton.cdiv(size, _ZERO_ROWS)
    aligned = 8 if width % 8 == 0 else 1
    far_dw = size * fan_in >= 1 << 31
    launch = Launch(linear_wgrad_kernel, (tiles + zeros, split), dict(
        tokens=tokens, units=width // aligned, size=size, fan_in=fan_in,
        blocks=blocks, tiles=tiles, halvings=width.bit_length(),
        dy_token=dy.stride(0), dy_channel=dy.stride(1),
        x_token=x.stride(0), x_column=x.stride(1),
        dw_row=1 if columns else fan_in, dw_column=size if columns else 1,
        GATHER=form == "gathered", BIAS=bias, PARTIAL=partial,
        FAR=far(dy, (tile.depth, size)) or far(x, (tile.depth, fan_in)) or far_dw,
        ALIGNED=aligned, PRECISION=PRECISION[arithmetic],
        ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth,
        ZERO_ROWS=_ZERO_ROWS, ZERO_COLUMNS=_ZERO_COLUMNS,
        **tile.options,
    ))  # fmt: skip
    return Plan(
        launch if tiles + zeros else None,
        (split, width if partial else 0, fan_in),
        (split, width if partial and bias else 0),
        partial,
    )  # fmt: skip


def launch(
    dy: Tensor, x: Tensor, lists: Lists, bias: bool, columns: bool, form: str,
    dtype: torch.dtype, configuration: Configuration | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dW and db from ``dy`` in the ``form`` it is in: ``[tokens, O]``, or packed, contiguous."""
    fan_in, size, width = x.shape[1], lists.size, width_of(lists)
    planned = plan(
        dy, x, size, width, lists.is_full, bias, columns, form,
        arithmetic(dy.dtype), configuration, device_of(dy),
    )  # fmt: skip
    dw = dy.new_empty((fan_in, size) if columns else (size, fan_in), dtype=dtype)
    rows = dw.t() if columns else dw
    db = dy.new_empty(size if bias else 0, dtype=dtype)
    sums = bias_sums = None
    if planned.partial:
        sums = dy.new_empty(planned.sums, dtype=torch.float32)
        bias_sums = dy.new_empty(planned.bias_sums, dtype=torch.float32) if bias else None
    with on_device_of(dy):
        if planned.launch:
            planned.launch(
                dy=dy, x=x, index=lists.padded, dw=rows, db=db, partial=sums, partial_sums=bias_sums
            )
        if sums is not None:
            spread(sums, bias_sums, lists.padded, rows, db if bias else None)
    return dw, db
