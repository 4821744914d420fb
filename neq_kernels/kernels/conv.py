"""conv_wgrad and conv_backward in 1 and 2 dimensions: which kernels take a call, and in which form.

Kernels gather the channels of dY themselves where planes are contiguous (NCHW), as gathered rows
then are. Where channels are contiguous (channels last), dY is packed first, unless the problem is
too small to pay for that. A 1x1 convolution of such operands is a linear layer, and depthwise
convolutions have kernels of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from neq_kernels.active import Lists
from neq_kernels.kernels import common, conv_depthwise, conv_dgrad
from neq_kernels.kernels import conv_wgrad as wgrad
from neq_kernels.kernels.common import Launch, on_device_of, remembered, width_of
from neq_kernels.kernels.configuration import (
    KERNEL,
    PACK_KERNELS,
    WIDE,
    Configuration,
    Product,
    cost,
)
from neq_kernels.kernels.conv_shape import (
    Shape,
    check,
    dense_planes,
    rows_of,
    shape_of,
    taps_first,
)
from neq_kernels.kernels.conv_tiles import configuration_for
from neq_kernels.kernels.device import Device, device_of
from neq_kernels.kernels.linear_wgrad import linear_wgrad
from neq_kernels.reference import Pack, pack_channels, with_strides


@dataclass(frozen=True)
class Options:
    """What a caller may decide instead of the cost function.

    Attributes:
        dtype: of the parameters' gradients; dY's unless given. float32 keeps what is accumulated.
        configuration: of the product's kernel.
        form: "gathered", "packed" or "linear".
    """

    dtype: torch.dtype | None = None
    configuration: Configuration | None = None
    form: str | None = None


_CHOSEN = Options()


def arithmetic(dtype: torch.dtype) -> str:
    """How products of ``dtype`` are computed: "half", "tf32" or "ieee". Float32 follows
    ``torch.backends.cudnn.conv.fp32_precision``, which ``torch.backends.cudnn.allow_tf32`` sets."""
    if dtype != torch.float32:
        return "half"
    setting = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if setting == "tf32" else "ieee"


def conv_wgrad(
    dy: Tensor, x: Tensor, weight: Tensor, lists: Lists, bias: bool,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    pack: Pack = pack_channels, options: Options = _CHOSEN,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator of :func:`neq_kernels.reference.conv_wgrad`, same arguments and results, in 1
    and 2 dimensions.

    Raises:
        TypeError: dy and x differ in dtype, or it is not one that the kernels serve.
        ValueError: operands are not on one device, or their shapes do not belong together.
    """
    window = (stride, padding, dilation)
    _, dw, db = _gradients(dy, x, weight, lists, bias, window, groups, pack, options, dgrad=False)
    return dw, db


def conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, lists: Lists, bias: bool,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    pack: Pack = pack_channels, options: Options = _CHOSEN,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The operator of :func:`neq_kernels.reference.conv_backward`, as :func:`conv_wgrad`; dX is in
    the strides of x."""
    window = (stride, padding, dilation)
    dx, dw, db = _gradients(dy, x, weight, lists, bias, window, groups, pack, options, dgrad=True)
    assert dx is not None
    return dx, dw, db


def _gradients(
    dy: Tensor, x: Tensor, weight: Tensor, lists: Lists, bias: bool,
    window: tuple[Sequence[int], ...], groups: int, pack: Pack, options: Options, dgrad: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:  # fmt: skip
    if dy.dim() == 3 and x.dim() == 3:
        # A picture one pixel high.
        dx, dw, db = _gradients(
            dy.unsqueeze(2), x.unsqueeze(2), weight.unsqueeze(2), lists, bias,
            tuple((neutral, *w) for neutral, w in zip((1, 0, 1), window, strict=True)),
            groups, pack, options, dgrad,
        )  # fmt: skip
        dx = None if dx is None else dx.squeeze(2)
        return dx, with_strides(dw.squeeze(2), weight), db
    width, full, device = width_of(lists), lists.is_full, device_of(dy)
    way = arithmetic(dy.dtype)
    form, shape, launches = _plans(
        dy, x, weight, lists.padded, width, full, bias, tuple(map(tuple, window)), groups, dgrad,
        way, common.arithmetic(dy.dtype), device, options.form, options.configuration,
    )  # fmt: skip
    if launches is None:
        dy, _ = pack(dy, lists.padded[:width], width, 1, False)
        launches = _packed_launches(
            dy, x, weight, full, bias, dgrad, shape, width, form, way, device, options.configuration
        )
    dx = torch.empty_like(x, dtype=dy.dtype) if dgrad else None
    if launches.dgrad:
        with on_device_of(dy):
            launches.dgrad(dy=dy, weight=weight, index=lists.padded, dx=dx)
    if form == "linear":
        return dx, *_linear(dy, x, weight, lists, bias, pack, options)
    dtype = options.dtype or dy.dtype
    dw = dy.new_empty((shape.size, shape.fan_in), dtype=dtype)
    db = dy.new_empty(shape.size if bias else 0, dtype=dtype)
    assert launches.wgrad is not None
    run = conv_depthwise.wgrad if form == "depthwise" else wgrad.run
    run(launches.wgrad, dy, x, lists.padded, dw, db if bias else None)
    if weight.is_contiguous() or taps_first(weight):
        return dx, dw.as_strided(weight.shape, weight.stride()), db
    return dx, with_strides(dw.view(weight.shape), weight), db


class Launches(NamedTuple):
    """How to launch both kernels; a linear layer's own launcher plans its wgrad."""

    dgrad: Launch | None
    wgrad: wgrad.Plan | None


@remembered
def _plans(
    dy: Tensor, x: Tensor, weight: Tensor, index: Tensor, width: int, full: bool, bias: bool,
    window: tuple[tuple[int, ...], ...], groups: int, dgrad: bool,
    arithmetic: str, linear_arithmetic: str, device: Device,
    form: str | None, configuration: Configuration | None,
) -> tuple[str, Shape, Launches | None]:  # fmt: skip
    """Form and sizes of a call, and its launches unless dY has to be packed first."""
    form, shape = form_of(
        dy, x, weight, index, width, window, groups, dgrad, arithmetic, linear_arithmetic, device,
        form,
    )  # fmt: skip
    if form == "packed":
        return form, shape, None
    launches = _launches(
        dy, x, weight, full, bias, dgrad, shape, width, form, arithmetic, device, configuration
    )
    return form, shape, launches


def form_of(
    dy: Tensor, x: Tensor, weight: Tensor, index: Tensor, width: int,
    window: tuple[tuple[int, ...], ...], groups: int, dgrad: bool,
    arithmetic: str, linear_arithmetic: str, device: Device, form: str | None,
) -> tuple[str, Shape]:  # fmt: skip
    """Which form a call takes, unless given, and its sizes.

    "depthwise" has kernels of its own; "linear" is a linear layer; "packed" and "gathered" are
    forms of dY. Packing reads dY and writes its channels, in kernels of their own; blocks then load
    fast, for both gradients (``dgrad``).

    Raises:
        TypeError, ValueError: as :func:`conv_wgrad`.
    """
    check(dy, x, weight if dgrad else None, index)
    shape = shape_of(dy, x, weight, window, groups)
    if shape.depthwise:
        return "depthwise", shape
    if form:
        return form, shape
    if dy.stride(1) != 1 or dense_planes(dy):
        return "gathered", shape
    linear = shape.point and shape.groups == 1 and rows_of(x) is not None
    if linear and not dgrad and linear_arithmetic == arithmetic:
        return "linear", shape
    walk = wgrad.walk_of(dy, x, shape, packed=False)
    gathered = wgrad.product_of(dy, x, shape, width, walk, arithmetic)
    product = replace(gathered, row_load=WIDE)
    saved = cost(gathered, configuration_for(gathered, device), device)
    saved -= cost(product, configuration_for(product, device), device)
    better = saved * (2 if dgrad else 1) > packing(shape, width, dy.element_size(), device)
    return "packed" if better else "gathered", shape


def packing(shape: Shape, width: int, itemsize: int, device: Device) -> float:
    """Nanoseconds, predicted, that it takes to pack ``width`` channels of dY."""
    moved = shape.positions * (shape.size + width) * itemsize
    return PACK_KERNELS * KERNEL + moved / device.bandwidth


def wgrad_choice(
    dy: Tensor, x: Tensor, shape: Shape, width: int, form: str, arithmetic: str, device: Device
) -> tuple[wgrad.Walk, Product, Configuration]:
    """How dW's kernel walks over dY as ``form`` has it, its product, and the configuration of
    least predicted cost."""
    walk = wgrad.walk_of(dy, x, shape, form == "packed")
    product = wgrad.product_of(dy, x, shape, width, walk, arithmetic)
    return walk, product, configuration_for(product, device)


def _launches(
    dy: Tensor, x: Tensor, weight: Tensor, full: bool, bias: bool, dgrad: bool, shape: Shape,
    width: int, form: str, arithmetic: str, device: Device, configuration: Configuration | None,
) -> Launches:  # fmt: skip
    """The plans for dY as ``form`` has it."""
    dx = torch.empty_like(x, device="meta") if dgrad else None
    if form == "depthwise":
        return Launches(
            None if dx is None else conv_depthwise.dgrad_plan(dy, weight, dx, shape, width),
            conv_depthwise.wgrad_plan(dy, x, shape, width, bias, device),
        )
    packed = form == "packed"
    launch = sums = None
    if dx is not None:
        reach = conv_dgrad.walk_of(dy, weight, dx, shape, packed)
        product = conv_dgrad.product_of(dy, weight, shape, width, reach, arithmetic)
        launch = conv_dgrad.plan(
            dy, weight, dx, shape, width, reach,
            configuration or configuration_for(product, device),
            packed=packed, arithmetic=arithmetic,
        )  # fmt: skip
    if form != "linear":
        walk, _, best = wgrad_choice(dy, x, shape, width, form, arithmetic, device)
        sums = wgrad.plan(
            dy, x, shape, width, full, bias, walk, configuration or best,
            packed=packed, last=taps_first(weight), arithmetic=arithmetic,
        )  # fmt: skip
    return Launches(launch, sums)


_packed_launches = remembered(_launches)


def _linear(
    dy: Tensor, x: Tensor, weight: Tensor, lists: Lists, bias: bool, pack: Pack, options: Options
) -> tuple[Tensor, Tensor]:
    rows, inputs = rows_of(dy), rows_of(x)
    assert rows is not None
    assert inputs is not None
    dw, db = linear_wgrad(
        rows, inputs, lists, bias, False, pack,
        dtype=options.dtype, configuration=options.configuration,
    )  # fmt: skip
    return with_strides(dw.view(weight.shape), weight), db
