"""Depthwise convolutions, every output channel o of one input channel, c = o // multiplier:

dW[o, r, s] = sum over n, p, q of dY[n, o, p, q] * X[n, c, h, w], h = p * stride + r * dilation -
padding; dX[n, c, h, w] = sum over o of c, r, s of dY[n, o, p, q] * W[o, r, s], p * stride = h +
padding - r * dilation; w and q alike.

Over the active o alone. There is no matrix product in it: both are bound by reading dY and X, so
the kernels multiply element by element, in float32, and what they read again comes from the
first-level cache. Neighbouring threads take neighbouring channels where those are contiguous, else
neighbouring positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from neq_kernels.kernels.common import Launch, find, on_device_of, spread
from neq_kernels.kernels.conv_positions import extended, offsets, positions, reciprocals, within
from neq_kernels.kernels.conv_shape import Shape
from neq_kernels.kernels.conv_wgrad import Plan
from neq_kernels.kernels.device import Device

# Products of one step: more, each with an address, spill. How many of its channels where channels
# are contiguous: a 32-byte sector of 16-bit ones twice over, since active channels have gaps. How
# many of its taps: as many share what they read from the first-level cache.
_PRODUCTS, _CHANNELS, _TAPS = 2048, 32, 16
# Programs that one multiprocessor holds, and the steps below which a split does not pay.
_RESIDENT, _LEAST_STEPS = 4, 8
# Of a program of dX, and its warps: four outputs a thread, whose addresses stay in registers.
_OUTPUTS, _DGRAD_WARPS = 1024, 8


@triton.jit(do_not_specialize=["images", "width", "span"])
def depthwise_wgrad_kernel(
    dy, x, index, partial, partial_sums,
    images, in_h, in_w, out_h, out_w, group_out, width, span,
    dy_n, dy_c, dy_h, dy_w, x_n, x_c, x_h, x_w,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    BIAS: tl.constexpr, LONG: tl.constexpr,
    DEPTH: tl.constexpr, TAPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Partial sums ``[split, width, R * S]`` and ``[split, width]``; the first axis: a block of
    active channels, the second: ``span`` steps of positions, the third: a block of taps, the first
    of which also sums dY."""
    row = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    channel = tl.load(index + row, mask=row < width, other=-1)
    active = channel >= 0
    tap = tl.program_id(2) * TAPS + tl.arange(0, TAPS)
    r, s = tap // KERNEL_W, tap % KERNEL_W
    real = (tap < KERNEL_H * KERNEL_W)[:, None] & active[None, :]
    dy_c_at = extended(channel, LONG) * dy_c
    down, right = r * DILATION_H - PADDING_H, s * DILATION_W - PADDING_W
    x_strides = x_n, x_h, x_w
    tap_at = offsets((0, down, right, 0), x_strides, False, LONG)
    x_c_at = tap_at[:, None] + (extended(channel // group_out, LONG) * x_c)[None, :]
    products = tl.zeros((DEPTH, TAPS, CHANNELS), tl.float32)
    sums = tl.zeros((DEPTH, CHANNELS), tl.float32)
    output = out_h, out_w
    inverses = reciprocals(output, False, 1, DEPTH)
    for step in range(tl.program_id(1) * span, (tl.program_id(1) + 1) * span):
        at, inside = positions(step, images, output, inverses, LONG, False, 1, DEPTH)
        image, p, q, place = at
        h, w = p * STRIDE_H, q * STRIDE_W
        dy_at = offsets(at, (dy_n, dy_h, dy_w), False, LONG)[:, None] + dy_c_at[None, :]
        x_at = offsets((image, h, w, place), x_strides, False, LONG)[:, None, None]
        hit = inside[:, None] & within(h[:, None] + down[None, :], in_h)
        hit &= within(w[:, None] + right[None, :], in_w)
        a = tl.load(dy + dy_at, mask=inside[:, None] & active[None, :], other=0)
        b = tl.load(
            x + (x_at + x_c_at[None, :, :]), mask=hit[:, :, None] & real[None, :, :], other=0
        )
        a = a.to(tl.float32)
        products += a[:, None, :] * b.to(tl.float32)
        if BIAS:
            sums += a
    slot = tl.program_id(1) * tl.cast(width, tl.int64) + row
    to = partial + slot[None, :] * (KERNEL_H * KERNEL_W) + tap[:, None]
    tl.store(to, tl.sum(products, axis=0), mask=real)
    if BIAS and tl.program_id(2) == 0:
        tl.store(partial_sums + slot, tl.sum(sums, axis=0), mask=active)


@triton.jit(do_not_specialize=["images", "width", "bits"])
def depthwise_dgrad_kernel(
    dy, weight, index, dx,
    images, channels, in_h, in_w, out_h, out_w, group_out, width, bits,
    dy_n, dy_c, dy_h, dy_w, dx_n, dx_c, dx_h, dx_w, w_o, w_r, w_s,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    LONG: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A program owns a block of positions (first axis) of a block of channels (second axis)."""
    size = in_h, in_w
    inverses = reciprocals(size, False, 1, POSITIONS)
    here, inside = positions(tl.program_id(0), images, size, inverses, LONG, False, 1, POSITIONS)
    image, h, w, place = here
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    for m in range(group_out):
        channel = c * group_out + m
        _, active = find(channel, index, width, bits)
        for tap in range(KERNEL_H * KERNEL_W):
            r, s = tap // KERNEL_W, tap % KERNEL_W
            above, left = h + PADDING_H - r * DILATION_H, w + PADDING_W - s * DILATION_W
            p, q = above // STRIDE_H, left // STRIDE_W
            hit = inside & (above >= 0) & (p < out_h) & (left >= 0) & (q < out_w)
            hit &= (above % STRIDE_H == 0) & (left % STRIDE_W == 0)
            dy_at = offsets((image, p, q, place), (dy_n, dy_h, dy_w), False, LONG)[:, None]
            dy_at += (extended(channel, LONG) * dy_c)[None, :]
            a = tl.load(dy + dy_at, mask=hit[:, None] & (c < channels)[None, :], other=0)
            w_at = extended(channel, LONG) * w_o + extended(r, LONG) * w_r + extended(s, LONG) * w_s
            b = tl.load(weight + w_at, mask=active & (c < channels), other=0)
            # A mask that does not depend on the list keeps loads wide; frozen dY may be anything.
            a = tl.where(active[None, :], a.to(tl.float32), 0)
            total += a * b.to(tl.float32)[None, :]
    dx_at = offsets(here, (dx_n, dx_h, dx_w), False, LONG)[:, None]
    dx_at += (extended(c, LONG) * dx_c)[None, :]
    mask = inside[:, None] & (c < channels)[None, :]
    tl.store(dx + dx_at, total.to(dx.dtype.element_ty), mask=mask)


class Block(NamedTuple):
    """What a program of the weight gradient's kernel multiplies at once, named as its constants."""

    DEPTH: int
    TAPS: int
    CHANNELS: int


def block_of(taps: int, last: bool) -> Block:
    """The block for a window of so many taps, channels contiguous (``last``) or not."""
    taps, channels = min(triton.next_power_of_2(taps), _TAPS), _CHANNELS if last else 1
    return Block(_PRODUCTS // (taps * channels), taps, channels)


def wgrad_plan(dy: Tensor, x: Tensor, shape: Shape, width: int, bias: bool, device: Device) -> Plan:
    """The plan for dy ``[N, O, P, Q]`` and x ``[N, C, H, W]`` of any strides."""
    block = block_of(shape.taps, dy.stride(1) == 1)
    blocks, steps = triton.cdiv(width, block.CHANNELS), triton.cdiv(shape.positions, block.DEPTH)
    tap_blocks = triton.cdiv(shape.taps, block.TAPS)
    span, split = _split(blocks * tap_blocks, steps, device)
    launch = Launch(depthwise_wgrad_kernel, (blocks, split, tap_blocks), dict(
        images=shape.images, in_h=shape.input[0], in_w=shape.input[1],
        out_h=shape.output[0], out_w=shape.output[1], group_out=shape.group_out,
        width=width, span=span,
        dy_n=dy.stride(0), dy_c=dy.stride(1), dy_h=dy.stride(2), dy_w=dy.stride(3),
        x_n=x.stride(0), x_c=x.stride(1), x_h=x.stride(2), x_w=x.stride(3),
        **shape.window(), **block._asdict(), BIAS=bias, LONG=shape.long(dy, x),
    ))  # fmt: skip
    return Plan(launch if blocks else None, (split, width, shape.taps), (split, width))


def wgrad(plan: Plan, dy: Tensor, x: Tensor, index: Tensor, dw: Tensor, db: Tensor | None) -> None:
    """Overwrite dw ``[O, R * S]``, contiguous, and db ``[O]``, unless None."""
    assert plan.sums is not None
    sums = dw.new_empty(plan.sums, dtype=torch.float32)
    bias_sums = None if db is None else dw.new_empty(plan.bias_sums, dtype=torch.float32)
    with on_device_of(dy):
        if plan.launch:
            plan.launch(dy=dy, x=x, index=index, partial=sums, partial_sums=bias_sums)
        spread(sums, bias_sums, index, dw, db)


def dgrad_plan(dy: Tensor, weight: Tensor, dx: Tensor, shape: Shape, width: int) -> Launch | None:
    """How to launch the other kernel on dy ``[N, O, P, Q]``, weight ``[O, 1, R, S]`` and dx
    ``[N, C, H, W]``, all of any strides."""
    channels = _CHANNELS if dx.stride(1) == 1 else 1
    inputs = shape.images * shape.input[0] * shape.input[1]
    blocks = triton.cdiv(inputs, _OUTPUTS // channels)
    if not blocks:
        return None
    grid = (blocks, triton.cdiv(shape.groups, channels))
    return Launch(depthwise_dgrad_kernel, grid, dict(
        images=shape.images, channels=shape.groups, in_h=shape.input[0], in_w=shape.input[1],
        out_h=shape.output[0], out_w=shape.output[1], group_out=shape.group_out,
        width=width, bits=width.bit_length(),
        dy_n=dy.stride(0), dy_c=dy.stride(1), dy_h=dy.stride(2), dy_w=dy.stride(3),
        dx_n=dx.stride(0), dx_c=dx.stride(1), dx_h=dx.stride(2), dx_w=dx.stride(3),
        w_o=weight.stride(0), w_r=weight.stride(2), w_s=weight.stride(3),
        **shape.window(), LONG=shape.long(dy, weight, dx),
        POSITIONS=_OUTPUTS // channels, CHANNELS=channels, num_warps=_DGRAD_WARPS,
    ))  # fmt: skip


def _split(blocks: int, steps: int, device: Device) -> tuple[int, int]:
    """Steps per program, and programs per block of channels: enough to fill the device."""
    wanted = triton.cdiv(device.processors * _RESIDENT, max(blocks, 1))
    span = max(triton.cdiv(steps, wanted), min(_LEAST_STEPS, steps), 1)
    return span, max(triton.cdiv(steps, span), 1)
