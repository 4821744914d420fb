"""The naive way to skip frozen neurons: index with a Python list, compute, zero-fill.

Rendered after what the one public implementation of the idea does. Its depthwise convolutions
compute every row, and so they do here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import Function

from neq_kernels.layer import cast_for_autocast


class _NaiveLinear(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, active):
        ctx.save_for_backward(x, weight)
        ctx.active = active
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        tokens = dy.flatten(0, -2)
        dw = torch.zeros_like(weight)
        dw[ctx.active] = tokens[:, ctx.active].t() @ x.flatten(0, -2)
        return dy @ weight, dw, _naive_bias(ctx, tokens, 0), None


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
        dw = torch.zeros_like(weight)
        dw[ctx.active] = rows if groups == 1 else rows[ctx.active]
        return dx, dw, _naive_bias(ctx, dy, (0, 2, 3)), None, None, None, None


def _naive_bias(ctx, dy, dims):
    if not ctx.needs_input_grad[2]:
        return None
    db = dy.new_zeros(dy.shape[1])
    db[ctx.active] = dy[:, ctx.active].sum(dims)
    return db


def _conv_backward(dy, x, weight, geometry, needed):
    stride, padding, groups = geometry
    return torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, (1, 1), False, (0, 0), groups, [*needed, False]
    )


def naive_forward(layer: nn.Module, x: Tensor, active: list[int]) -> Tensor:
    """``layer(x)`` for a Linear or Conv2d, whose backward fills the rows of ``active`` only."""
    x, weight, bias = cast_for_autocast(x, layer.weight, layer.bias)
    if isinstance(layer, nn.Conv2d):
        geometry = (layer.stride, layer.padding, layer.groups)
        return _NaiveConv.apply(x, weight, bias, active, *geometry)
    return _NaiveLinear.apply(x, weight, bias, active)
