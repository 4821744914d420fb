"""The operators registered with torch, for compiled graphs: schemas, fakes, FLOPs, validation.

A layer's set enters as two tensors that are read when the operator runs: ``index`` (int32
``[size]``, the active channels in rising order, -1 beyond) and ``count`` (0-d int64 on the CPU).
A change of the set is then a change of data, and recompiles nothing. Gradients nobody asked for
come back with shape ``[0]``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from neq_kernels import planner, reference
from neq_kernels.active import Lists, lists
from neq_kernels.gradients import (
    ConvGeometry,
    Gradients,
    Needed,
    conv_dgrad,
    conv_geometry,
    conv_gradients,
    linear_dgrad,
    linear_geometry,
    linear_gradients,
)

_ops = torch.ops.neq_kernels


def traced_linear_gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    index: Tensor,
    count: Tensor,
    needed: Needed,
    columns: bool,
    propagate: str,
) -> Gradients:
    """:func:`gradients.linear_gradients` in operations a compiler can trace: dX of all channels in
    plain torch, what depends on the set in registered operators."""
    if propagate == "active":
        if needed.dx and needed.dw:
            dx, dw, db = _ops.linear_backward(dy, x, weight, index, count, needed.db, columns)
            return dx, dw, db if needed.db else None
        dy = _ops.mask_rows(dy, index, count, dy.dim() - 1)
    dx = linear_dgrad(dy, weight, columns) if needed.dx else None
    if needed.dw:
        dw, db = _ops.linear_wgrad(dy, x, index, count, needed.db, columns)
        return dx, dw, db if needed.db else None
    db = dy.reshape(-1, dy.shape[-1]).sum(0) if needed.db else None
    return dx, None, None if db is None else _ops.mask_rows(db, index, count, 0)


def traced_conv_gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    index: Tensor,
    count: Tensor,
    needed: Needed,
    geometry: ConvGeometry,
    propagate: str,
) -> Gradients:
    """:func:`gradients.conv_gradients` in operations a compiler can trace."""
    if propagate == "active":
        if needed.dx and needed.dw:
            dx, dw, db = _ops.conv_backward(dy, x, weight, index, count, needed.db, *geometry)
            return dx, dw, db if needed.db else None
        dy = _ops.mask_rows(dy, index, count, 1)
    dx = conv_dgrad(dy, x, weight, geometry) if needed.dx else None
    if needed.dw:
        dw, db = _ops.conv_wgrad(dy, x, weight, index, count, needed.db, *geometry)
        return dx, dw, db if needed.db else None
    db = dy.sum([d for d in range(dy.dim()) if d != 1]) if needed.db else None
    return dx, None, None if db is None else _ops.mask_rows(db, index, count, 0)


_library = torch.library.Library("neq_kernels", "FRAGMENT")
_CONV = "int[] stride, int[] padding, int[] dilation, int groups"
_SET = "Tensor index, Tensor count, bool bias"
_library.define(f"linear_wgrad(Tensor dy, Tensor x, {_SET}, bool columns) -> (Tensor, Tensor)")
_library.define(
    f"linear_backward(Tensor dy, Tensor x, Tensor weight, {_SET}, bool columns)"
    " -> (Tensor, Tensor, Tensor)"
)
_library.define(
    f"conv_wgrad(Tensor dy, Tensor x, Tensor weight, {_SET}, {_CONV}) -> (Tensor, Tensor)"
)
_library.define(
    f"conv_backward(Tensor dy, Tensor x, Tensor weight, {_SET}, {_CONV})"
    " -> (Tensor, Tensor, Tensor)"
)
_library.define("mask_rows(Tensor grad, Tensor index, Tensor count, int dim) -> Tensor")


def _linear_wgrad(
    dy: Tensor, x: Tensor, index: Tensor, count: Tensor, bias: bool, columns: bool
) -> tuple[Tensor, Tensor]:
    channels = _checked_lists(dy, dy.dim() - 1, x, index, count)
    if channels.count == 0:
        shape = (x.shape[-1], dy.shape[-1]) if columns else (dy.shape[-1], x.shape[-1])
        return dy.new_zeros(shape), _zero_bias(dy, index, bias)
    needed = Needed(False, True, bias)
    path = planner.settled(linear_geometry(dy, x.shape[-1], channels, needed, "all")).path
    _, dw, db = linear_gradients(dy, x, None, channels, needed, columns, "all", path)
    return _given(dw), _given(db, dy)


def _linear_backward(
    dy: Tensor, x: Tensor, weight: Tensor, index: Tensor, count: Tensor, bias: bool, columns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    channels = _checked_lists(dy, dy.dim() - 1, x, index, count)
    if channels.count == 0:
        return x.new_zeros(x.shape), torch.zeros_like(weight), _zero_bias(dy, index, bias)
    needed = Needed(True, True, bias)
    path = planner.settled(linear_geometry(dy, x.shape[-1], channels, needed, "active")).path
    dx, dw, db = linear_gradients(dy, x, weight, channels, needed, columns, "active", path)
    return _given(dx), _given(dw), _given(db, dy)


def _conv_wgrad(
    dy: Tensor, x: Tensor, weight: Tensor, index: Tensor, count: Tensor, bias: bool,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    channels = _checked_lists(dy, 1, x, index, count)
    if channels.count == 0:
        return torch.zeros_like(weight), _zero_bias(dy, index, bias)
    geometry = ConvGeometry(stride, padding, dilation, groups)
    needed = Needed(False, True, bias)
    path = planner.settled(conv_geometry(dy, weight, channels, needed, geometry, "all")).path
    _, dw, db = conv_gradients(dy, x, weight, channels, needed, geometry, "all", path)
    return _given(dw), _given(db, dy)


def _conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, index: Tensor, count: Tensor, bias: bool,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    channels = _checked_lists(dy, 1, x, index, count)
    if channels.count == 0:
        return torch.zeros_like(x), torch.zeros_like(weight), _zero_bias(dy, index, bias)
    geometry = ConvGeometry(stride, padding, dilation, groups)
    needed = Needed(True, True, bias)
    path = planner.settled(conv_geometry(dy, weight, channels, needed, geometry, "active")).path
    dx, dw, db = conv_gradients(dy, x, weight, channels, needed, geometry, "active", path)
    # The fake promised the strides of x; vendor kernels may have followed dy's.
    dx = reference.with_strides(_given(dx), torch.empty_like(x, device="meta"))
    return dx, _given(dw), _given(db, dy)


def _mask_rows(grad: Tensor, index: Tensor, count: Tensor, dim: int) -> Tensor:
    return reference.mask_rows(grad, _checked_lists(grad, dim, None, index, count), dim)


def _checked_lists(dy: Tensor, axis: int, x: Tensor | None, index: Tensor, count: Tensor) -> Lists:
    if index.dtype != torch.int32 or index.dim() != 1 or index.numel() != dy.shape[axis]:
        raise ValueError(
            f"index: expected int32 of shape [{dy.shape[axis]}], one place per channel of dy, got "
            f"{index.dtype} {list(index.shape)}; pass the layer's own list"
        )
    if index.device != dy.device:
        raise ValueError(
            f"index: expected on {dy.device} like dy, got {index.device}; move it there"
        )
    if count.device.type != "cpu" or count.dim() or count.dtype != torch.int64:
        raise ValueError(
            f"count: expected a 0-d int64 tensor on the cpu, got {count.dtype} "
            f"{list(count.shape)} on {count.device}; kernels must know it without a sync"
        )
    if x is not None and (x.dtype != dy.dtype or x.device != dy.device):
        raise ValueError(
            f"x: expected {dy.dtype} on {dy.device} like dy, got {x.dtype} on {x.device}; "
            "cast or move one of them"
        )
    rows = slice(0, 1) if axis == 1 else slice(0, -1)
    if x is not None and x.shape[rows] != dy.shape[rows]:
        raise ValueError(
            f"x: expected {list(dy.shape[rows])} before its channels like dy, got "
            f"{list(x.shape[rows])}; pass the input of the forward that dy belongs to"
        )
    if not 0 <= int(count) <= index.numel():
        raise ValueError(f"count: expected in [0, {index.numel()}], got {int(count)}")
    return lists(index, count)


def _zero_bias(dy: Tensor, index: Tensor, bias: bool) -> Tensor:
    return dy.new_zeros(index.numel() if bias else 0)


def _given(grad: Tensor | None, like: Tensor | None = None) -> Tensor:
    if grad is not None:
        return grad
    assert like is not None
    return like.new_empty(0)


for _name, _function in {
    "linear_wgrad": _linear_wgrad,
    "linear_backward": _linear_backward,
    "conv_wgrad": _conv_wgrad,
    "conv_backward": _conv_backward,
    "mask_rows": _mask_rows,
}.items():
    _library.impl(_name, _function, "CompositeExplicitAutograd")


def _bias_like(dy: Tensor, index: Tensor, bias: bool) -> Tensor:
    return dy.new_empty(index.numel() if bias else 0)


@torch.library.register_fake("neq_kernels::linear_wgrad")
def _(dy, x, index, count, bias, columns):  # type: ignore[no-untyped-def]
    shape = (x.shape[-1], dy.shape[-1]) if columns else (dy.shape[-1], x.shape[-1])
    return dy.new_empty(shape), _bias_like(dy, index, bias)


@torch.library.register_fake("neq_kernels::linear_backward")
def _(dy, x, weight, index, count, bias, columns):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), weight.new_empty(weight.shape), _bias_like(dy, index, bias)


@torch.library.register_fake("neq_kernels::conv_wgrad")
def _(dy, x, weight, index, count, bias, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    dw = torch.empty_strided(weight.shape, weight.stride(), dtype=dy.dtype, device=dy.device)
    return dw, _bias_like(dy, index, bias)


@torch.library.register_fake("neq_kernels::conv_backward")
def _(dy, x, weight, index, count, bias, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    dw = torch.empty_strided(weight.shape, weight.stride(), dtype=dy.dtype, device=dy.device)
    return torch.empty_like(x), dw, _bias_like(dy, index, bias)


@torch.library.register_fake("neq_kernels::mask_rows")
def _(grad, index, count, dim):  # type: ignore[no-untyped-def]
    return torch.empty_like(grad)


@register_flop_formula(_ops.linear_wgrad, get_raw=True)
def _linear_wgrad_flops(dy, x, index, count, bias, columns, out_val=None):  # type: ignore[no-untyped-def]
    return 2 * x.numel() * int(count)


@register_flop_formula(_ops.linear_backward, get_raw=True)
def _linear_backward_flops(dy, x, weight, index, count, bias, columns, out_val=None):  # type: ignore[no-untyped-def]
    return 4 * x.numel() * int(count)


@register_flop_formula(_ops.conv_wgrad, get_raw=True)
def _conv_wgrad_flops(dy, x, weight, index, count, bias, *geometry, out_val=None):  # type: ignore[no-untyped-def]
    channels = max(weight.shape[0], 1)
    return 2 * (dy.numel() // channels) * (weight.numel() // channels) * int(count)


@register_flop_formula(_ops.conv_backward, get_raw=True)
def _conv_backward_flops(*arguments, out_val=None):  # type: ignore[no-untyped-def]
    return 2 * _conv_wgrad_flops(*arguments)
