"""Autograd functions of the layers: save what is needed, compute what is asked.

``mode`` says how the forward met its set:

* ``"some"``: eager, some neurons active;
* ``"none"``: eager, no neuron active but dX passes through: the input is not saved;
* ``"cut"``: eager, no neuron active and nothing passes: every gradient is None;
* ``"opaque"``: under torch.compile: registered operators read the set when they run.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from neq_kernels import ops
from neq_kernels.active import Lists, lists
from neq_kernels.gradients import (
    ConvGeometry,
    Needed,
    conv_dgrad,
    conv_gradients,
    conv_path,
    linear_dgrad,
    linear_gradients,
    linear_path,
)


class LinearFunction(Function):
    """``y = x W^T + b`` (``x W + b`` when ``columns``); dW and db hold active neurons only.

    Shapes: x ``[..., I]``, weight ``[O, I]`` (``[I, O]`` when ``columns``), bias ``[O]`` or None,
    index int32 ``[O]``, count 0-d int64. ``taken`` receives the path of the last backward.
    """

    @staticmethod
    def forward(x, weight, bias, index, count, columns, propagate, mode, taken):  # type: ignore[no-untyped-def]
        return conv1d_forward(x, weight, bias) if columns else F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, index, count, ctx.columns, ctx.propagate, ctx.mode, ctx.taken = inputs
        ctx.fan_in = x.shape[-1]
        _save(ctx, x, weight, index, count)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> Any:
        rest = (None,) * 6
        if dy is None or ctx.mode == "cut":
            return (None, None, None, *rest)
        needed = Needed(*ctx.needs_input_grad[:3])
        if ctx.mode == "opaque":
            x, weight, index, count = ctx.saved_tensors
            traced = ops.traced_linear_gradients(
                dy, x, weight, index, count, needed, ctx.columns, ctx.propagate
            )
            return (*traced, *rest)
        channels = _channels(ctx)
        x, weight = ctx.saved_tensors
        with _no_autocast(dy):
            if ctx.mode == "none":
                return (linear_dgrad(dy, weight, ctx.columns), None, None, *rest)
            path = linear_path(dy, ctx.fan_in, channels, ctx.propagate)
            if torch.is_grad_enabled():
                path, weight = "dense", _constant_rows(weight, channels, int(ctx.columns))
            ctx.taken["path"] = path
            gradients = linear_gradients(
                dy, x, weight, channels, needed, ctx.columns, ctx.propagate, path
            )
            return (*gradients, *rest)


def conv1d_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """transformers' Conv1D, to the bit: ``x`` ``[..., I]`` times ``weight`` ``[I, O]``."""
    y = torch.addmm(bias, x.view(-1, x.shape[-1]), weight)
    return y.view(*x.shape[:-1], weight.shape[1])


class ConvFunction(Function):
    """A convolution in 1 to 3 dimensions, zero-padded; dW and db hold active neurons only.

    Shapes: x ``[N, C, *in]``, weight ``[O, C/groups, *kernel]``, bias ``[O]`` or None, index int32
    ``[O]``, count 0-d int64. ``taken`` receives the path of the last backward.
    """

    @staticmethod
    def forward(x, weight, bias, index, count, geometry, propagate, mode, taken):  # type: ignore[no-untyped-def]
        stride, padding, dilation, groups = geometry
        no_output_padding = (0,) * len(stride)
        return torch.convolution(
            x, weight, bias, stride, padding, dilation, False, no_output_padding, groups
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, index, count, geometry, ctx.propagate, ctx.mode, ctx.taken = inputs
        ctx.geometry = geometry
        ctx.x_layout = (x.shape, x.stride())
        _save(ctx, x, weight, index, count, always_weight=True)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> Any:
        rest = (None,) * 6
        if dy is None or ctx.mode == "cut":
            return (None, None, None, *rest)
        needed = Needed(*ctx.needs_input_grad[:3])
        geometry = ConvGeometry(*ctx.geometry)
        if ctx.mode == "opaque":
            x, weight, index, count = ctx.saved_tensors
            traced = ops.traced_conv_gradients(
                dy, x, weight, index, count, needed, geometry, ctx.propagate
            )
            return (*traced, *rest)
        channels = _channels(ctx)
        x, weight = ctx.saved_tensors
        with _no_autocast(dy):
            if x is None:
                # Only its shape and strides are read where no weight gradient is wanted.
                x = torch.empty_strided(*ctx.x_layout, dtype=dy.dtype, device=dy.device)
            if ctx.mode == "none":
                return (conv_dgrad(dy, x, weight, geometry), None, None, *rest)
            path = conv_path(dy, weight, channels, geometry.groups, ctx.propagate)
            if torch.is_grad_enabled():
                path, weight = "dense", _constant_rows(weight, channels, 0)
            ctx.taken["path"] = path
            gradients = conv_gradients(
                dy, x, weight, channels, needed, geometry, ctx.propagate, path
            )
            return (*gradients, *rest)


class MaskFunction(Function):
    """A parameter, unchanged, whose gradient is zero where ``mask`` (bool, same shape) is false."""

    @staticmethod
    def forward(parameter, mask):  # type: ignore[no-untyped-def]
        return parameter.view_as(parameter)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        _, ctx.index = inputs
        ctx.version = ctx.index._version

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return None, None
        _check_unchanged(ctx)
        return torch.where(ctx.index, grad, 0), None


def _save(
    ctx: Any, x: Tensor, weight: Tensor, index: Tensor, count: Tensor, always_weight: bool = False
) -> None:
    ctx.set_materialize_grads(False)
    if ctx.mode == "opaque":
        # Saved tensors are version-checked by the compiled graph: a changed set raises there.
        ctx.save_for_backward(x, weight, index, count)
        return
    need_x = ctx.mode == "some" and ctx.needs_input_grad[1]
    need_weight = ctx.mode != "cut" and (ctx.needs_input_grad[0] or always_weight)
    ctx.save_for_backward(x if need_x else None, weight if need_weight else None)
    ctx.index, ctx.count, ctx.version = index, count, index._version


def _channels(ctx: Any) -> Lists:
    _check_unchanged(ctx)
    return lists(ctx.index, ctx.count)


def _check_unchanged(ctx: Any) -> None:
    if ctx.index._version != ctx.version:
        raise RuntimeError(
            "backward: expected the active set that the forward saw, but it was changed in between "
            "by set_active or tracker.update(); change sets between optimizer steps, or run the "
            "forward again"
        )


def _constant_rows(weight: Tensor | None, channels: Lists, dim: int) -> Tensor | None:
    """Under create_graph the dense path is differentiated again: there too, frozen neurons are
    constants."""
    if weight is None:
        return None
    shape = [1] * weight.dim()
    shape[dim] = -1
    active = (channels.inverse < channels.count).view(shape)
    return torch.where(active, weight, weight.detach())


def _no_autocast(like: Tensor) -> Any:
    """The backward computes in its tensors' own dtypes, also when it runs under autocast."""
    if torch.is_autocast_enabled(like.device.type):
        return torch.autocast(like.device.type, enabled=False)
    return nullcontext()
