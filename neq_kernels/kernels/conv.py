"""conv_wgrad and conv_backward in 1 and 2 dimensions: which kernels take a call, and in which form.

Kernels gather the channels of dY themselves where planes are contiguous (NCHW), as gathered rows
then are. Where channels are contiguous (channels last), dY is packed first, unless the problem is
too small to pay for that. A 1x1 convolution of such operands is a linear layer, and depthwise
convolutions have kernels of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from neq_kernels.active import Lists, bucket
from neq_kernels.kernels import common, conv_depthwise, conv_dgrad
from neq_kernels.kernels import conv_wgrad as wgrad
from neq_kernels.kernels.configuration import KERNEL, PACK_KERNELS, Configuration, Product, cost
from neq_kernels.kernels.conv_shape import (
    Shape,
    check,
    dense_planes,
    rows_of,
    shape_of,
    taps_first,
)
from neq_kernels.kernels.conv_tiles import configuration_for
from neq_kernels.kernels.device import device_of
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
    check(dy, x, weight if dgrad else None, lists)
    if dy.dim() == 3:
        # A picture one pixel high.
        dx, dw, db = _gradients(
            dy.unsqueeze(2), x.unsqueeze(2), weight.unsqueeze(2), lists, bias,
            tuple((neutral, *w) for neutral, w in zip((1, 0, 1), window, strict=True)),
            groups, pack, options, dgrad,
        )  # fmt: skip
        dx = None if dx is None else dx.squeeze(2)
        return dx, with_strides(dw.squeeze(2), weight), db
    shape = shape_of(dy, x, weight, window, groups)
    call = _Call(dy, x, weight, lists, shape, arithmetic(dy.dtype), options)
    if not shape.depthwise:
        call = call.in_form(call.form(dgrad), pack)
    dx = call.dgrad() if dgrad else None
    return dx, *call.gradients(bias, pack)


@dataclass(frozen=True)
class _Call:
    """A call in two dimensions. ``dy`` has all channels, or ``packed`` ones in channels last."""

    dy: Tensor
    x: Tensor
    weight: Tensor
    lists: Lists
    shape: Shape
    arithmetic: str
    options: Options
    packed: bool = False
    linear: bool = False

    @property
    def width(self) -> int:
        return min(bucket(self.lists.count), self.lists.size)

    def form(self, dgrad: bool) -> str:
        """Packing reads dY and writes its channels, in kernels of their own; blocks then load fast,
        for both gradients."""
        if self.options.form:
            return self.options.form
        if self.dy.stride(1) != 1 or dense_planes(self.dy):
            return "gathered"
        linear = self.shape.point and self.shape.groups == 1 and rows_of(self.x) is not None
        if linear and not dgrad and common.arithmetic(self.dy.dtype) == self.arithmetic:
            return "linear"
        device = device_of(self.dy)
        gathered = self._wgrad_product(self._walk)
        product = replace(gathered, gathered=False)
        elements = product.depth * (self.lists.size + self.width) * product.itemsize
        saved = cost(gathered, configuration_for(gathered, device), device)
        saved -= cost(product, configuration_for(product, device), device)
        packing = PACK_KERNELS * KERNEL + elements / device.bandwidth
        return "packed" if saved * (2 if dgrad else 1) > packing else "gathered"

    def in_form(self, form: str, pack: Pack) -> _Call:
        """The same call with dY as ``form`` wants it."""
        if form == "packed":
            dy, _ = pack(self.dy, self.lists.padded[: self.width], self.width, 1, False)
            return replace(self, dy=dy, packed=True)
        return replace(self, linear=form == "linear")

    def gradients(self, bias: bool, pack: Pack) -> tuple[Tensor, Tensor]:
        """dW in the strides of the weight, and db."""
        if self.linear:
            return self._linear(bias, pack)
        shape, dtype = self.shape, self.options.dtype or self.dy.dtype
        dw = self.dy.new_empty((shape.size, shape.fan_in), dtype=dtype)
        db = self.dy.new_empty(shape.size if bias else 0, dtype=dtype)
        wanted = db if bias else None
        last = taps_first(self.weight)
        if shape.depthwise:
            conv_depthwise.wgrad(self.dy, self.x, self.lists, shape, dw, wanted)
        else:
            wgrad.launch(
                self.dy, self.x, self.lists, shape, dw, wanted, self._walk,
                self._configuration(self._wgrad_product(self._walk)),
                packed=self.packed, last=last, arithmetic=self.arithmetic,
            )  # fmt: skip
        (r, s), c = shape.kernel, shape.group_in
        full = dw.view(-1, r, s, c).permute(0, 3, 1, 2) if last else dw.view(-1, c, r, s)
        return with_strides(full, self.weight), db

    def dgrad(self) -> Tensor:
        """dX in the strides of x."""
        dx = torch.empty_like(self.x, dtype=self.dy.dtype)
        if self.shape.depthwise:
            conv_depthwise.dgrad(self.dy, self.weight, self.lists, self.shape, dx)
            return dx
        walk = conv_dgrad.walk_of(self.dy, self.weight, dx, self.shape, self.packed)
        product = conv_dgrad.product_of(
            self.shape, self.width, walk, self.arithmetic, self.dy.element_size()
        )
        conv_dgrad.launch(
            self.dy, self.weight, self.lists, self.shape, dx, walk, self._configuration(product),
            packed=self.packed, arithmetic=self.arithmetic,
        )  # fmt: skip
        return dx

    def _linear(self, bias: bool, pack: Pack) -> tuple[Tensor, Tensor]:
        dy, x = rows_of(self.dy), rows_of(self.x)
        assert dy is not None
        assert x is not None
        dw, db = linear_wgrad(
            dy, x, self.lists, bias, False, pack,
            dtype=self.options.dtype, configuration=self.options.configuration,
        )  # fmt: skip
        return with_strides(dw.view(self.weight.shape), self.weight), db

    @cached_property
    def _walk(self) -> wgrad.Walk:
        return wgrad.walk_of(self.dy, self.x, self.shape, self.packed)

    def _wgrad_product(self, walk: wgrad.Walk) -> Product:
        itemsize = self.dy.element_size()
        return wgrad.product_of(self.shape, self.width, walk, self.arithmetic, itemsize)

    def _configuration(self, product: Product) -> Configuration:
        return self.options.configuration or configuration_for(product, device_of(self.dy))
