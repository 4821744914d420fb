"""The naive way to skip frozen neurons: index with a Python list, compute, zero-fill.

Rendered after what the one public implementation of the idea does. Its depthwise convolutions
compute every row, and so they do here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import Function


class _NaiveLinear(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, active):
        ctx.save_for_backward(x, weight)
        ctx.active = active
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        rows = dy[:, ctx.active]
        dw, db = torch.zeros_like(weight), weight.new_zeros(weight.shape[0])
        dw[ctx.active] = rows.t() @ x
        db[ctx.active] = rows.sum(0)
        return dy @ weight, dw, db, None


class _NaiveConv(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, active, stride, padding, groups):
        ctx.save_for_backward(x, weight)
        ctx.active, ctx.geometry = active, (stride, padding, groups)
        return nn.functional.conv2d(x, weight, bias, stride, padding, groups=groups)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        groups = ctx.geometry[-1]
        active = ctx.active if groups == 1 else list(range(weight.shape[0]))
        dx = _conv_backward(dy, x, weight, ctx.geometry, (True, False))[0]
        packed = dy[:, active]
        rows = _conv_backward(packed, x, weight[active], ctx.geometry, (False, True))[1]
        dw, db = torch.zeros_like(weight), weight.new_zeros(weight.shape[0])
        dw[ctx.active] = rows if groups == 1 else rows[ctx.active]
        db[ctx.active] = dy[:, ctx.active].sum((0, 2, 3))
        return dx, dw, db, None, None, None, None


def _conv_backward(dy, x, weight, geometry, needed):
    stride, padding, groups = geometry
    return torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, (1, 1), False, (0, 0), groups, [*needed, False]
    )


def naive_forward(layer: nn.Module, x: Tensor, active: list[int]) -> Tensor:
    """``layer(x)`` for a Linear or Conv2d, whose backward fills the rows of ``active`` only."""
    if isinstance(layer, nn.Conv2d):
        geometry = (layer.stride, layer.padding, layer.groups)
        return _NaiveConv.apply(x, layer.weight, layer.bias, active, *geometry)
    return _NaiveLinear.apply(x, layer.weight, layer.bias, active)
