"""The gradients of one layer, given which channels are active and the path to take.

Eager autograd comes here directly; compiled graphs come through the registered operators of
:mod:`neq_kernels.ops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neq_kernels import backends, planner, reference, reference_conv
from neq_kernels.active import Lists

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Needed(NamedTuple):
    """Which of a layer's gradients autograd asks for."""

    dx: bool
    dw: bool
    db: bool


class ConvGeometry(NamedTuple):
    """A convolution's arguments, a number per spatial dimension; padding with zeros."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int


def linear_gradients(
    dy: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    channels: Lists,
    needed: Needed,
    columns: bool,
    propagate: str,
    path: str,
) -> Gradients:
    """dX, dW and db of a linear layer, frozen rows of dW and db exactly zero.

    Shapes: dy ``[..., O]``, x ``[..., I]``, weight ``[O, I]`` (``[I, O]`` when ``columns``).
    ``x`` is read for dW only, ``weight`` for dX only. ``path`` is the planner's answer; "dense"
    consists of differentiable operations.
    """
    if path != "dense" and needed.dw:
        assert x is not None
        if propagate == "active" and needed.dx:
            backward = _backend("linear_backward", dy, path)
            dx, dw, db = backward(dy, x, weight, channels, needed.db, columns)
        else:
            dx = _linear_dgrad_of_all(dy, weight, columns, path) if needed.dx else None
            dw, db = _backend("linear_wgrad", dy, path)(dy, x, channels, needed.db, columns)
        return dx, dw, db if needed.db else None
    if propagate == "active" and needed.dx:
        dy = reference.mask_rows(dy, channels, dy.dim() - 1)
    dx = linear_dgrad(dy, weight, columns) if needed.dx else None
    rows, dw, db = reference.as_rows(dy), None, None
    if needed.dw:
        assert x is not None
        inputs = reference.as_rows(x)
        dw = inputs.t() @ rows if columns else rows.t() @ inputs
        dw = channels.zero_frozen_(dw, int(columns))
    if needed.db:
        db = channels.zero_frozen_(rows.sum(0), 0)
    return dx, dw, db


def conv_gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    channels: Lists,
    needed: Needed,
    geometry: ConvGeometry,
    propagate: str,
    path: str,
) -> Gradients:
    """dX, dW and db of a convolution, frozen rows of dW and db exactly zero.

    Shapes: dy ``[N, O, *out]``, x ``[N, C, *in]``, weight ``[O, C/groups, *kernel]``. ``path`` is
    the planner's answer; "dense" consists of differentiable operations.
    """
    if path != "dense" and needed.dw:
        arguments = (dy, x, weight, channels, needed.db, *geometry)
        path = path if geometry.groups == 1 else "packed"
        if propagate == "active" and needed.dx:
            dx, dw, db = _backend("conv_backward", dy, path, dy.dim() - 2)(*arguments)
        else:
            dx = conv_dgrad(dy, x, weight, geometry) if needed.dx else None
            dw, db = _backend("conv_wgrad", dy, path, dy.dim() - 2)(*arguments)
        return dx, dw, db if needed.db else None
    if propagate == "active" and needed.dx:
        dy = reference.mask_rows(dy, channels, 1)
    dx, dw, db = _conv(dy, x, weight, geometry, needed)
    if dw is not None:
        dw = reference.with_strides(dw, weight)
    for grad in (dw, db):
        if grad is not None:
            channels.zero_frozen_(grad, 0)
    return dx, dw, db


def conv_dgrad(dy: Tensor, x: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """dX of a convolution through all channels; of ``x`` only shape and strides are read."""
    dx = _conv(dy, x, weight, geometry, Needed(True, False, False))[0]
    assert dx is not None
    return dx


def linear_geometry(
    dy: Tensor, fan_in: int, channels: Lists, needed: Needed, propagate: str
) -> planner.Geometry:
    """What the planner wants to know of a linear layer with output gradient ``dy`` ``[..., O]``."""
    positions = dy.numel() // max(channels.size, 1)
    return planner.Geometry(
        "linear", dy.device.type, dy.dtype, positions, fan_in, channels.size, channels.count,
        propagate=propagate, shape=(positions,), needed=needed,
        direct=backends.direct("linear_wgrad", dy.device.type, dy.dtype) is not None,
    )  # fmt: skip


def conv_geometry(
    dy: Tensor,
    weight: Tensor,
    channels: Lists,
    needed: Needed,
    geometry: ConvGeometry,
    propagate: str,
) -> planner.Geometry:
    """The same of a convolution with output gradient ``dy`` ``[N, O, *out]``."""
    size = max(channels.size, 1)
    tensor = dy.device.type, dy.dtype, dy.dim() - 2
    fused = (
        reference.is_depthwise(weight, geometry.groups)
        and backends.why_not("native", *tensor[:2]) is None
        and backends.resolve("conv_wgrad", *tensor)[0] == "native"
    )
    direct = (
        geometry.groups == 1 and backends.direct("conv_wgrad", *tensor, geometry.stride) is not None
    )
    return planner.Geometry(
        "conv", dy.device.type, dy.dtype, dy.numel() // size, weight.numel() // size,
        channels.size, channels.count, geometry.groups, weight.shape[2:].numel(),
        not dy.is_contiguous(), propagate, (dy.shape[0], *dy.shape[2:]),
        (*geometry.stride, *geometry.dilation), needed, fused, direct,
    )  # fmt: skip


def linear_dgrad(dy: Tensor, weight: Tensor | None, columns: bool) -> Tensor:
    """dX of a linear layer through all channels."""
    assert weight is not None
    return dy @ (weight.t() if columns else weight)


def _conv(
    dy: Tensor, x: Tensor, weight: Tensor, geometry: ConvGeometry, needed: Needed
) -> Gradients:
    dx, dw, db = torch.ops.aten.convolution_backward(
        dy, x, weight, [weight.shape[0]], geometry.stride, geometry.padding, geometry.dilation,
        False, [0] * len(geometry.stride), geometry.groups, list(needed),
    )  # fmt: skip
    return dx, dw, db


def _linear_dgrad_of_all(dy: Tensor, weight: Tensor | None, columns: bool, path: str) -> Tensor:
    native = backends.direct("conv_dgrad", dy.device.type, dy.dtype)
    if path != "direct+dx" or native is None:
        return linear_dgrad(dy, weight, columns)
    assert weight is not None
    every = _every_channel(dy.shape[-1])
    return reference_conv.linear_dgrad_as_conv(native, dy, weight, every, columns)


@lru_cache(maxsize=1024)
def _every_channel(size: int) -> Lists:
    return Lists(torch.arange(size, dtype=torch.int32, device="cpu"), size)


def _backend(operator: str, dy: Tensor, path: str, spatial: int = 0) -> Any:
    kind = dy.device.type, dy.dtype, spatial
    direct = backends.direct(operator, *kind) if path.startswith("direct") else None
    return direct or backends.resolve(operator, *kind)[1]
