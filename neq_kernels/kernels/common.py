"""What the kernels share: the arithmetic that torch is set to, finding a channel's place, and the
second kernel of a split sum.

``spread_kernel``: out[o, j] = sum_s partial[s, place(o), j], zero where channel o is frozen. The
sum runs in the order of s, whatever order the programs of the first kernel finished in: results
are bit-identical from run to run. Every element of ``out`` is written once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from neq_kernels.active import Lists, bucket
from neq_kernels.kernels import DTYPES, interpreted
from neq_kernels.kernels.configuration import APART, BESIDE, WIDE, Load

# tl.dot's input_precision for each arithmetic; it has no say in 16-bit products.
PRECISION = {"half": "tf32", "tf32": "tf32", "ieee": "ieee"}
_ROWS, _COLUMNS = 32, 128
# Far more than a network has layers times sizes of batches; a bound all the same.
_REMEMBERED = 4096
_Plan = TypeVar("_Plan")


def remembered(plan: Callable[..., _Plan]) -> Callable[..., _Plan]:
    """``plan`` worked out once for arguments that are alike: tensors of the same shape, strides,
    dtype, device and alignment, and equal values. It may look at nothing else of a tensor, nor at
    settings; those are arguments, too. What it raises is raised every time."""
    made: dict[tuple[object, ...], _Plan] = {}

    @wraps(plan)
    def recall(*arguments: Any) -> _Plan:
        key = tuple([
            (a.shape, a.stride(), a.dtype, a.device, a.data_ptr() % 16)
            if isinstance(a, Tensor) else a
            for a in arguments
        ])  # fmt: skip
        known = made.get(key)
        if known is None:
            if len(made) >= _REMEMBERED:
                made.clear()
            known = made[key] = plan(*arguments)
        return known

    recall.made = made  # type: ignore[attr-defined]
    return recall


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid and its arguments, all but the tensors."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]

    def __call__(self, **tensors: Tensor | None) -> None:
        """Launch it on the current device."""
        self.kernel[self.grid](**tensors, **self.arguments)


def arithmetic(dtype: torch.dtype) -> str:
    """How products of ``dtype`` are computed: "half", "tf32" or "ieee". Float32 follows
    ``torch.set_float32_matmul_precision`` and ``torch.backends.cuda.matmul.allow_tf32``."""
    if dtype != torch.float32:
        return "half"
    # Unlike allow_tf32, this one may be read after either of torch's interfaces was used.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def check(dy: Tensor, index: Tensor, **operand: Tensor) -> None:
    """Refuse what a kernel would misread: it sees addresses, not tensors.

    Args:
        dy: the gradient of the layer's output.
        index: the active channels.
        operand: what dy is multiplied with, under the name it has for the caller.

    Raises:
        TypeError: the operands differ in dtype, or it is one that the kernels do not serve.
        ValueError: dy, the operand and the index are not on one device.
    """
    ((name, other),) = operand.items()
    if dy.dtype not in DTYPES or other.dtype != dy.dtype:
        raise TypeError(
            f"dy, {name}: expected both float32, float16 or bfloat16, got {dy.dtype} and "
            f"{other.dtype}; cast one of them, or use another backend"
        )
    if not dy.device == other.device == index.device:
        raise ValueError(
            f"dy, {name}, index: expected one device, got {dy.device}, {other.device} and "
            f"{index.device}; move the layer and its input together"
        )


def check_tokens(dy: Tensor, x: Tensor) -> None:
    """Refuse ``dy`` ``[tokens, O]`` and ``x`` ``[tokens, I]`` of different forwards.

    Raises:
        ValueError: they differ in tokens.
    """
    if dy.shape[0] != x.shape[0]:
        raise ValueError(
            f"x: expected {dy.shape[0]} rows like dy, got {x.shape[0]}; pass the input of the "
            "forward that dy belongs to"
        )


def vectors(matrix: Tensor, axis: int) -> bool:
    """Whether ``matrix`` can be loaded 16 bytes at a time along ``axis``, as Triton sees it: it
    knows of addresses and numbers only whether they are multiples of 16."""
    return (
        matrix.stride(axis) == 1
        and matrix.stride(1 - axis) % 16 == 0
        and matrix.shape[axis] % 16 == 0
        and matrix.data_ptr() % 16 == 0
    )


def load_of(matrix: Tensor, axis: int) -> Load:
    """How ``matrix`` is loaded, whose elements are side by side along ``axis`` if anywhere."""
    if vectors(matrix, axis):
        return WIDE
    return BESIDE if matrix.stride(axis) == 1 else APART


def load_of_packed(width: int) -> Load:
    """How a packed dY of ``width`` channels is."""
    return WIDE if width % 8 == 0 else BESIDE


def width_of(lists: Lists) -> int:
    """Length of the index that kernels see: the count's bucket, so that a changed set rarely means
    another grid and never another compilation."""
    return min(bucket(lists.count), lists.size)


def packing_bytes(dy: Tensor, width: int) -> int:
    """What packing ``width`` channels of ``dy`` ``[tokens, O]`` reads and writes."""
    return dy.shape[0] * (dy.shape[1] + width) * dy.element_size()


def far(operand: Tensor, extent: tuple[int, int] | None = None) -> bool:
    """Whether elements of one tile of a matrix may lie 2^31 elements or more apart; a tile reaches
    over ``extent`` rows and columns, all of them unless given."""
    rows, columns = extent or operand.shape
    return abs(operand.stride(0)) * rows + abs(operand.stride(1)) * columns >= 1 << 31


def on_device_of(tensor: Tensor) -> Any:
    """A context in which Triton launches where ``tensor`` is."""
    if tensor.device.type != "cuda" or tensor.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


# Triton's interpreter multiplies the bits of bfloat16 numbers as if they were integers.
_WIDEN = tl.constexpr(interpreted())


@triton.jit
def round_to_tf32(value):
    """The nearest number of the ten fraction bits that tensor cores read; they would cut it off.

    As an operation between load and product it also lets operands that must be transposed come in
    16 bytes at a time."""
    bits = value.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    # The carry would make a number of some NaNs.
    return tl.where(value == value, rounded, value)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """``a @ b + acc``, accumulated in float32; PRECISION as in :data:`PRECISION`."""
    if PRECISION == "tf32" and a.dtype == tl.float32:
        a = round_to_tf32(a)
        b = round_to_tf32(b)
    if _WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def offsets(row, column, row_stride, column_stride, FAR: tl.constexpr):
    """``row[:, None] * row_stride + column[None, :] * column_stride``; 64 bits only where FAR, as
    they take twice the registers."""
    if FAR:
        row = row.to(tl.int64)
        column = column.to(tl.int64)
    return row[:, None] * row_stride + column[None, :] * column_stride


@triton.jit
def find(channels, index, width, steps):
    """Place of each of ``channels`` in the rising ``index[:width]`` (-1 beyond its end), and
    whether it is there; ``steps`` at least the bits of ``width``."""
    low = tl.zeros_like(channels)
    high = low + width
    for _ in range(steps):
        middle = (low + high) // 2
        value = tl.load(index + middle, mask=middle < width, other=-1)
        below = (value >= 0) & (value < channels)
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    value = tl.load(index + low, mask=low < width, other=-1)
    return low, value == channels


@triton.jit(do_not_specialize=["size", "width", "split", "steps"])
def spread_kernel(
    partial, partial_sums, index, out, sums,
    size, width, columns, split, steps, out_row, out_column,
    BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """See the head of the file. Float32 partial ``[split, width, columns]`` and partial_sums
    ``[split, width]``; out ``[size, columns]`` with strides, sums ``[size]``."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place, active = find(row, index, width, steps)
    inside = column < columns
    live = active[:, None] & inside[None, :]
    source = partial + place.to(tl.int64)[:, None] * columns + column[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(split):
        total += tl.load(source, mask=live, other=0)
        source += tl.cast(width, tl.int64) * columns
    target = out + row.to(tl.int64)[:, None] * out_row + column.to(tl.int64)[None, :] * out_column
    tl.store(target, total.to(out.dtype.element_ty), mask=(row < size)[:, None] & inside[None, :])
    if BIAS and tl.program_id(1) == 0:
        total_sums = tl.zeros((ROWS,), tl.float32)
        for s in range(split):
            total_sums += tl.load(partial_sums + s * width + place, mask=active, other=0)
        tl.store(sums + row, total_sums.to(sums.dtype.element_ty), mask=row < size)


@remembered
def spread_plan(split: int, width: int, out: Tensor, bias: bool) -> Launch | None:
    """How to launch :func:`spread_kernel` on out ``[size, columns]`` of any strides."""
    size, columns = out.shape
    if size == 0:
        return None
    grid = (triton.cdiv(size, _ROWS), max(triton.cdiv(columns, _COLUMNS), 1))
    return Launch(spread_kernel, grid, dict(
        size=size, width=width, columns=columns, split=split, steps=width.bit_length(),
        out_row=out.stride(0), out_column=out.stride(1),
        BIAS=bias, ROWS=_ROWS, COLUMNS=_COLUMNS, maxnreg=128,
    ))  # fmt: skip


def spread(
    partial: Tensor, partial_sums: Tensor | None, index: Tensor, out: Tensor, sums: Tensor | None
) -> None:
    """Launch :func:`spread_kernel`.

    Shapes: partial ``[split, width, columns]`` and partial_sums ``[split, width]``, contiguous
    float32; index int32 ``[width or more]``, rising, -1 beyond its end; out ``[size, columns]`` of
    any strides and sums ``[size]`` are overwritten. Without a bias both sums are None.
    """
    split, width, _ = partial.shape
    launch = spread_plan(split, width, out, sums is not None)
    if launch:
        launch(partial=partial, partial_sums=partial_sums, index=index, out=out, sums=sums)
