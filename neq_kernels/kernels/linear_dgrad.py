"""linear_dgrad over the active channels: dX[m, :] = sum_i dY[m, index[i]] * W[index[i], :].

A matrix product whose rows are the tokens, whose columns are W's, and whose sum runs over the
active channels: short, so it is never split. W's rows are gathered in the kernel, which costs
nothing where each is contiguous. dY comes packed to ``[tokens, width]``, or as it is, its channels
gathered like W's rows: good where its tokens are contiguous, or where packing costs more than it
saves. Padding is masked on both sides: frozen channels of dY are never read, whatever they hold.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from neq_kernels.active import Lists
from neq_kernels.kernels.common import (
    PRECISION,
    Launch,
    arithmetic,
    check,
    dot,
    far,
    load_of,
    load_of_packed,
    on_device_of,
    packing_bytes,
    remembered,
    width_of,
)
from neq_kernels.kernels.configuration import (
    WIDE,
    Configuration,
    Product,
    cheaper_form,
    choose,
)
from neq_kernels.kernels.device import Device, device_of
from neq_kernels.reference import Pack, as_rows, pack_channels

FORMS = ("gathered", "packed")
# Tiles of rows that share blocks of W before the next columns are begun.
_GROUP = 8


@triton.jit(do_not_specialize=["units"])
def linear_dgrad_kernel(
    dy, weight, index, dx,
    tokens, units, fan_in,
    dy_token, dy_channel, weight_row, weight_column, dx_token, dx_column,
    GATHER: tl.constexpr, GATHER_WEIGHT: tl.constexpr, FAR: tl.constexpr, ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """See the head of the file. The width is ``units`` times ALIGNED, so that the compiler knows
    what it is a multiple of; addresses within a tile are 64-bit offsets only where FAR."""
    pid, width = tl.program_id(0), units * ALIGNED
    row_tiles, column_tiles = tl.cdiv(tokens, ROWS), tl.cdiv(fan_in, COLUMNS)
    # Programs that run together form a block of tiles: they meet in the cache.
    group = pid // (GROUP * column_tiles)
    rows_here = tl.minimum(row_tiles - group * GROUP, GROUP)
    within = pid % (GROUP * column_tiles)
    first_row = (group * GROUP + within % rows_here).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    column = (within // rows_here) * COLUMNS + tl.arange(0, COLUMNS)
    place = tl.arange(0, DEPTH)
    row_mask, column_mask = row < tokens - first_row, column < fan_in
    if FAR:
        row, column = row.to(tl.int64), column.to(tl.int64)
    if not GATHER:
        # Packed dY is contiguous.
        dy_token, dy_channel = width, 1
    dy_row = dy + first_row * dy_token + row * dy_token
    weight_at = weight + column * weight_column
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, width, DEPTH):
        inside = place < width - start
        active, source = inside, start + place
        if GATHER or GATHER_WEIGHT:
            channel = tl.load(index + start + place, mask=inside, other=-1)
            active = channel >= 0
        if FAR:
            channel, source = channel.to(tl.int64), source.to(tl.int64)
        if GATHER:
            a_at, a_mask = dy_row[:, None] + channel[None, :] * dy_channel, active
        else:
            a_at, a_mask = dy_row[:, None] + source[None, :] * dy_channel, inside
        if GATHER_WEIGHT:
            b_at, b_mask = weight_at[None, :] + channel[:, None] * weight_row, active
        else:
            b_at, b_mask = weight_at[None, :] + source[:, None] * weight_row, inside
        a = tl.load(a_at, mask=row_mask[:, None] & a_mask[None, :], other=0)
        b = tl.load(b_at, mask=b_mask[:, None] & column_mask[None, :], other=0)
        acc = dot(a, b, acc, PRECISION)
    dx_at = dx + first_row * dx_token + (row[:, None] * dx_token + column[None, :] * dx_column)
    tl.store(dx_at, acc.to(dx.dtype.element_ty), mask=row_mask[:, None] & column_mask[None, :])


def linear_dgrad(
    dy: Tensor,
    weight: Tensor,
    lists: Lists,
    columns: bool,
    pack: Pack = pack_channels,
    *,
    configuration: Configuration | None = None,
    form: str | None = None,
) -> Tensor:
    """``dX[m, :] = sum_i dy[m, index[i]] * W[index[i], :]``.

    Args:
        dy: ``[..., O]``.
        weight: ``[O, I]``, or ``[I, O]`` when ``columns``; any strides.
        lists: the active channels.
        columns: see ``weight``.
        pack: makes whole blocks of single channels.
        configuration: instead of the one of least predicted cost.
        form: "gathered" or "packed", instead of the one of less predicted cost.

    Returns:
        dX ``[..., I]`` in dy's dtype, contiguous.

    Raises:
        TypeError: dy and weight differ in dtype, or it is not one that the kernels serve.
        ValueError: dy, weight or the lists are not on one device, or their shapes do not match.
    """
    rows, width = as_rows(dy), width_of(lists)
    way, device = arithmetic(dy.dtype), device_of(dy)
    form = form_of(rows, weight, lists.padded, width, columns, way, device, form)
    if form == "packed":
        rows, _ = pack(rows, lists.padded[:width], width, 1, False)
    dx = launch(rows, weight, lists, columns, form, pack, configuration)
    return dx.view(*dy.shape[:-1], dx.shape[1])


@remembered
def form_of(
    dy: Tensor, weight: Tensor, index: Tensor, width: int, columns: bool, arithmetic: str,
    device: Device, form: str | None,
) -> str:  # fmt: skip
    """The form to have dY in, unless given: ``dy`` ``[tokens, O]``.

    Raises:
        TypeError, ValueError: as :func:`linear_dgrad`.
    """
    check_weight(dy, weight, index, columns)
    if form:
        return form
    gathered, packed = (
        product(dy, weight_rows(weight, columns), width, arithmetic, name) for name in FORMS
    )
    return cheaper_form((gathered,), (packed,), packing_bytes(dy, width), device)


def check_weight(dy: Tensor, weight: Tensor, index: Tensor, columns: bool) -> None:
    """Refuse a weight that ``dy`` ``[tokens, O]`` is not multiplied with.

    Raises:
        TypeError, ValueError: as :func:`linear_dgrad`.
    """
    check(dy, index, weight=weight)
    if not dy.shape[1] == weight.shape[int(columns)] == index.numel():
        raise ValueError(
            f"weight: expected {dy.shape[1]} neurons like dy, got {weight.shape[int(columns)]}, "
            f"and a list for {index.numel()}; pass the layer's own weight and list"
        )


def weight_rows(weight: Tensor, columns: bool) -> Tensor:
    """The weight as ``[O, I]``."""
    return weight.t() if columns else weight


def product(dy: Tensor, rows: Tensor, width: int, arithmetic: str, form: str) -> Product:
    """What the cost function must know; ``dy`` ``[tokens, O]``, or packed; the weight's ``rows``
    ``[O, I]``."""
    return Product(
        arithmetic, dy.element_size(), rows=dy.shape[0], columns=rows.shape[1],
        depth=width, splittable=False,
        row_load=load_of(dy, 0) if form == "gathered" else load_of_packed(width),
        column_load=WIDE if _packs(rows, width) else load_of(rows, 1),
    )  # fmt: skip


def _packs(rows: Tensor, width: int) -> bool:
    """Whether the weight's rows, single elements apart, are packed: its columns are contiguous."""
    return rows.stride(0) == 1 and rows.stride(1) != 1 and width % 8 == 0


@remembered
def plan(
    dy: Tensor, rows: Tensor, size: int, width: int, gather_weight: bool, form: str,
    arithmetic: str, configuration: Configuration | None, device: Device,
) -> Launch | None:  # fmt: skip
    """How to launch the kernel on ``dy`` in the ``form`` it is in, and on the weight's ``rows``
    ``[O, I]``, or packed ones unless ``gather_weight``."""
    configuration = configuration or choose(product(dy, rows, width, arithmetic, form), device)
    tile, tokens, fan_in = configuration.tile, dy.shape[0], rows.shape[1]
    aligned = 8 if width % 8 == 0 else 1
    programs = triton.cdiv(tokens, tile.rows) * triton.cdiv(fan_in, tile.columns)
    if programs == 0:
        return None
    return Launch(linear_dgrad_kernel, (programs,), dict(
        tokens=tokens, units=width // aligned, fan_in=fan_in,
        dy_token=dy.stride(0), dy_channel=dy.stride(1),
        weight_row=rows.stride(0), weight_column=rows.stride(1), dx_token=fan_in, dx_column=1,
        GATHER=form == "gathered", GATHER_WEIGHT=gather_weight, ALIGNED=aligned,
        FAR=far(dy, (tile.rows, size)) or far(rows) or tile.rows * fan_in >= 1 << 31,
        PRECISION=PRECISION[arithmetic],
        ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, GROUP=_GROUP,
        **tile.options,
    ))  # fmt: skip


def launch(
    dy: Tensor, weight: Tensor, lists: Lists, columns: bool, form: str, pack: Pack,
    configuration: Configuration | None = None,
) -> Tensor:  # fmt: skip
    """dX ``[tokens, I]`` from ``dy`` in the ``form`` it is in: ``[tokens, O]``, or packed."""
    width, way, device = width_of(lists), arithmetic(dy.dtype), device_of(dy)
    rows = weight_rows(weight, columns)
    gather_weight = not _packs(rows, width)
    if not gather_weight:
        rows = pack(rows.t(), lists.padded[:width], width, 1, False)[0].t()
    planned = plan(dy, rows, lists.size, width, gather_weight, form, way, configuration, device)
    dx = dy.new_empty((dy.shape[0], rows.shape[1]))
    if planned:
        with on_device_of(dy):
            planned(dy=dy, weight=rows, index=lists.padded, dx=dx)
    return dx
