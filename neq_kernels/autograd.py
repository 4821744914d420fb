"""Autograd functions of the layers: save what is needed, compute what is asked.

A ``setup_context`` of their own would have torch inspect signatures at every call, at some 40 us;
transforms of torch.func, which need one, are served without these functions.

``mode`` says how the forward met its set:

* ``"some"``: eager, some neurons active;
* ``"none"``: eager, no neuron active but dX passes through: the input is not saved;
* ``"cut"``: eager, no neuron active and nothing passes: every gradient is None;
* ``"opaque"``: under torch.compile: registered operators read the set when they run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from neq_kernels import ops, planner
from neq_kernels.active import Lists, check_unchanged, lists
from neq_kernels.gradients import (
    Needed,
    conv_dgrad,
    conv_geometry,
    conv_gradients,
    linear_dgrad,
    linear_geometry,
    linear_gradients,
)


class LinearFunction(Function):
    """``y = x W^T + b`` (``x W + b`` when ``columns``); dW and db hold active neurons only.

    Shapes: x ``[..., I]``, weight ``[O, I]`` (``[I, O]`` when ``columns``), bias ``[O]`` or None,
    index int32 ``[O]``, count 0-d int64. ``plan`` knows the path, or has it found.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, index, count, columns, propagate, mode, plan):  # type: ignore[no-untyped-def]
        ctx.columns, ctx.propagate, ctx.mode, ctx.plan = columns, propagate, mode, plan
        ctx.fan_in = x.shape[-1]
        _save(ctx, x, weight, index, count)
        return conv1d_forward(x, weight, bias) if columns else F.linear(x, weight, bias)

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
            if torch.is_grad_enabled():
                weight = _constant_rows(weight, channels, int(ctx.columns))
            turn = _turn(
                ctx, dy, needed,
                lambda: linear_geometry(dy, ctx.fan_in, channels, needed, ctx.propagate),
            )  # fmt: skip
            gradients = linear_gradients(
                dy, x, weight, channels, needed, ctx.columns, ctx.propagate, turn.path
            )
            turn.stop()
            return (*gradients, *rest)


def conv1d_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """transformers' Conv1D, to the bit: ``x`` ``[..., I]`` times ``weight`` ``[I, O]``."""
    y = torch.addmm(bias, x.view(-1, x.shape[-1]), weight)
    return y.view(*x.shape[:-1], weight.shape[1])


class ConvFunction(Function):
    """A convolution in 1 to 3 dimensions, zero-padded; dW and db hold active neurons only.

    Shapes: x ``[N, C, *in]``, weight ``[O, C/groups, *kernel]``, bias ``[O]`` or None, index int32
    ``[O]``, count 0-d int64. ``plan`` knows the path, or has it found.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, index, count, geometry, propagate, mode, plan):  # type: ignore[no-untyped-def]
        ctx.geometry, ctx.propagate, ctx.mode, ctx.plan = geometry, propagate, mode, plan
        ctx.x_layout = (x.shape, x.stride())
        _save(ctx, x, weight, index, count, always_weight=True)
        stride, padding, dilation, groups = geometry
        no_output_padding = (0,) * len(stride)
        return torch.convolution(
            x, weight, bias, stride, padding, dilation, False, no_output_padding, groups
        )

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> Any:
        rest = (None,) * 6
        if dy is None or ctx.mode == "cut":
            return (None, None, None, *rest)
        needed, geometry = Needed(*ctx.needs_input_grad[:3]), ctx.geometry
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
            if torch.is_grad_enabled():
                weight = _constant_rows(weight, channels, 0)
            turn = _turn(
                ctx, dy, needed,
                lambda: conv_geometry(dy, weight, channels, needed, geometry, ctx.propagate),
            )  # fmt: skip
            gradients = conv_gradients(
                dy, x, weight, channels, needed, geometry, ctx.propagate, turn.path
            )
            turn.stop()
            return (*gradients, *rest)


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
    ctx.forward_key = forward_key(x, ctx.needs_input_grad[:3])


_DENSE = planner.Settled("dense", "rule")


def _turn(
    ctx: Any, dy: Tensor, needed: Needed, geometry: Callable[[], planner.Geometry]
) -> planner.Settled:
    """The path of this backward. Only "dense" consists of differentiable operations, and without a
    weight gradient there is nothing to choose."""
    if torch.is_grad_enabled() or not needed.dw:
        return _DENSE
    key = (planner.scales(dy.shape), dy.is_contiguous(), dy.dtype, needed)
    plan: planner.LayerPlan = ctx.plan
    turn = plan.settled.get(key) or planner.start(geometry(), plan, key)
    plan.path, plan.why = turn.path, turn.why
    if turn.path == "dense" and key in plan.settled and ctx.propagate == "all":
        plan.dense.add(ctx.forward_key)
    return turn


def forward_key(x: Tensor, needed: Sequence[bool]) -> tuple[Any, ...]:
    """By what a forward can tell beforehand which way its backward goes."""
    return planner.scales(x.shape), x.is_contiguous(), x.dtype, *needed


def _channels(ctx: Any) -> Lists:
    check_unchanged(ctx.index, ctx.version)
    plan: planner.LayerPlan = ctx.plan
    if plan.lists is not None:
        return plan.lists
    channels = lists(ctx.index, ctx.count)
    if channels.padded.device.type == "cpu":
        plan.lists = channels
    return channels


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
