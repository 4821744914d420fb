"""Every operator in plain torch: the specification the kernels are tested against.

Neurons are output channels. ``lists`` names the active ones; ``dy`` is the gradient of the layer's
output. Whatever has the shape of a parameter comes back in full shape with frozen rows exactly
zero. ``pack``, ``depthwise``, ``rows`` and ``dgrad`` are what other backends replace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from neq_kernels.active import Lists, Regrouped
from neq_kernels.reference_conv import (
    as_positions,
    conv_dgrad,  # noqa: F401, part of it
    in_channels_last,
    linear_dgrad_as_conv,
)
from neq_kernels.reference_rows import row_adamw, row_sgd  # noqa: F401, also part of it

BLOCK = 8
# Elements widened to fp64 at once: what fits a cache, on devices what keeps memory low.
CHUNK = {"cpu": 1 << 17, "cuda": 1 << 24}

Pack = Callable[[Tensor, Tensor, int, int, bool], tuple[Tensor, Tensor]]
Depthwise = Callable[..., tuple[Tensor, Tensor]]
Rows = Callable[..., tuple[Tensor, Tensor]]
Dgrad = Callable[..., Tensor]


def pack_channels(
    dy: Tensor, index: Tensor, width: int, dim: int, bias: bool
) -> tuple[Tensor, Tensor]:
    """``packed[.., i, ..] = dy[.., index[i], ..]`` for i < width, zeros where ``index[i] < 0``;
    ``sums[i]`` is packed channel i summed over all other dimensions (``[0]`` without ``bias``)."""
    dim = dim % dy.dim()
    index = index[:width]
    packed = dy.index_select(dim, index.clamp(min=0))
    shape = [-1 if d == dim else 1 for d in range(dy.dim())]
    packed = packed.masked_fill((index < 0).view(shape), 0)
    if dim == 1 and dy.dim() in (4, 5) and dy.stride(1) == 1 and not dy.is_contiguous():
        packed = packed.contiguous(memory_format=_channels_last(dy.dim()))
    others = [d for d in range(dy.dim()) if d != dim]
    if not bias:
        return packed, dy.new_empty(0)
    return packed, packed.sum(others) if others else packed.clone()


def channel_moments(a: Tensor, b: Tensor, dim: int, per_sample: bool) -> Tensor:
    """Sums of a*b, a*a and b*b per channel along ``dim``: fp64 ``[3, C]``, or with ``per_sample``
    of each sample along dimension 0 on its own, ``[3, N, C]``.

    Products and sums are fp64 whatever the inputs are: of vectors that differ by a millionth, fp32
    would blur the difference. Without ``per_sample`` samples are taken a few at a time, so that the
    fp64 copies stay small.
    """
    dim = dim % a.dim()
    if per_sample and dim == 0:
        raise ValueError(
            "per_sample: expected samples in dimension 0, got dim=0: there are the channels"
        )
    if per_sample:
        return _moments(a, b, {0, dim})
    chunk = CHUNK.get(a.device.type, CHUNK["cuda"])
    if dim == 0 or a.numel() <= chunk:
        return _moments(a, b, {dim})
    samples = max(1, chunk * a.size(0) // a.numel())
    pairs = zip(a.split(samples), b.split(samples), strict=True)
    return torch.stack([_moments(x, y, {dim}) for x, y in pairs]).sum(0)


def _moments(a: Tensor, b: Tensor, kept: set[int]) -> Tensor:
    others = [d for d in range(a.dim()) if d not in kept]
    a, b = a.double(), b.double()
    products = (a * b, a * a, b * b)
    return torch.stack([p.sum(others) if others else p for p in products])


def moving(velocity: Tensor, epsilon: float) -> Tensor:
    """Who trains on: ``|velocity| >= epsilon``, bool; NaN is frozen (NEq, arXiv 2207.09455)."""
    return velocity.abs() >= epsilon


def compact(layers: Sequence[Tensor], epsilon: float = 0.0) -> Tensor:
    """The active channels of many layers as one int32 tensor, on their device: how many there are
    in each, then of one layer after the other the channels in rising order, -1 up to its size.

    ``layers`` are bool masks ``[C]``, or velocities, of which :func:`moving` are active.
    """
    counts, lists = [], []
    for layer in layers:
        mask = layer if layer.dtype == torch.bool else moving(layer, epsilon)
        order = (~mask).to(torch.int8).argsort(stable=True)  # the active ones first, in order
        place = torch.arange(mask.numel(), device=mask.device)
        count = mask.sum(dtype=torch.int32)
        lists.append(torch.where(place < count, order, -1).to(torch.int32))
        counts.append(count.view(1))
    return torch.cat([*counts, *lists])


def linear_wgrad(
    dy: Tensor,
    x: Tensor,
    lists: Lists,
    bias: bool,
    columns: bool,
    pack: Pack = pack_channels,
    rows: Rows | None = None,
) -> tuple[Tensor, Tensor]:
    """``dW[index[i], :] = sum_m dy[m, index[i]] * x[m, :]`` and the same rows of the bias gradient.

    Shapes: dy ``[..., O]``, x ``[..., I]``; dW ``[O, I]``, or ``[I, O]`` when ``columns``.
    """
    if rows:
        # A convolution along the tokens whose channels lie side by side.
        size = (dy.shape[-1], x.shape[-1], 1)
        strides = (1, size[0], 1) if columns else (size[1], 1, 1)
        window = (1,), (0,), (1,)
        dw, sums = rows(*as_positions(dy, x), lists, bias, size, strides, *window)
        dw = dw.squeeze(2)
        return dw.t() if columns else dw, sums
    width = _whole_blocks(lists)
    packed, sums = pack(dy, lists.padded[:width], width, dy.dim() - 1, bias)
    return _linear_rows(as_rows(packed), sums, as_rows(x), lists, bias, columns)


def linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    lists: Lists,
    bias: bool,
    columns: bool,
    pack: Pack = pack_channels,
    rows: Rows | None = None,
    dgrad: Dgrad | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both gradients from the active channels alone: ``dX = dy[:, index] @ W[index]``, and
    :func:`linear_wgrad`, from one packing of ``dy``."""
    if rows and dgrad:
        dx = linear_dgrad_as_conv(dgrad, dy, weight, lists, columns)
        return dx, *linear_wgrad(dy, x, lists, bias, columns, rows=rows)
    width = _whole_blocks(lists)
    index = lists.padded[:width]
    packed, sums = pack(dy, index, width, dy.dim() - 1, bias)
    packed = as_rows(packed)
    kept = weight.index_select(int(columns), index.clamp(min=0))
    dx = packed @ (kept.t() if columns else kept)
    return dx.view(x.shape), *_linear_rows(packed, sums, as_rows(x), lists, bias, columns)


def _linear_rows(
    packed: Tensor, sums: Tensor, x: Tensor, lists: Lists, bias: bool, columns: bool
) -> tuple[Tensor, Tensor]:
    dw = spread(x.t() @ packed if columns else packed.t() @ x, lists, int(columns))
    return dw, spread(sums, lists) if bias else sums


def conv_wgrad(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    lists: Lists,
    bias: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pack: Pack = pack_channels,
    depthwise: Depthwise | None = None,
) -> tuple[Tensor, Tensor]:
    """``dW[index[i], c, r] = sum over n, p of dy[n, index[i], p] * x[n, c, p*stride + r*dilation
    - padding]`` in 1 to 3 spatial dimensions, and the same rows of the bias gradient.

    Of ``weight`` (``[O, C/groups, *kernel]``) only shape and strides are read.
    """
    geometry = (stride, padding, dilation)
    if depthwise and is_depthwise(weight, groups):
        return depthwise(dy, x, weight, lists, bias, *geometry)
    _, dw, db = _conv(dy, x, weight, lists, bias, geometry, groups, pack, (False, True))
    return dw, db


def depthwise_wgrad(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    lists: Lists,
    bias: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """:func:`conv_wgrad` where every group has one input channel: ``dW[index[i], 0, r] = sum over
    n, p of dy[n, index[i], p] * x[n, index[i] // multiplier, p*stride + r*dilation - padding]`` for
    ``multiplier = O / C``, from the active channels' groups alone."""
    geometry, groups = (stride, padding, dilation), x.shape[1]
    needed = (False, True)
    _, dw, db = _conv(dy, x, weight, lists, bias, geometry, groups, pack_channels, needed)
    return dw, db


def is_depthwise(weight: Tensor, groups: int) -> bool:
    """Whether :func:`depthwise_wgrad` computes this convolution's gradient, in every backend."""
    return groups > 1 and weight.shape[1] == 1 and weight.dim() in (3, 4)


def conv_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    lists: Lists,
    bias: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pack: Pack = pack_channels,
    depthwise: Depthwise | None = None,
    rows: Rows | None = None,
    dgrad: Dgrad | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both gradients of a convolution from its active channels alone, from one packing of ``dy``:
    those of a dense backward whose ``dy`` is zero in the frozen channels."""
    geometry = (stride, padding, dilation)
    if rows and dgrad and groups == 1:
        dx = dgrad(dy, weight, lists, x.shape[2:], *geometry, in_channels_last(x))
        return dx, *rows(dy, x, lists, bias, weight.shape, weight.stride(), *geometry)
    if depthwise and is_depthwise(weight, groups):
        dw, db = depthwise(dy, x, weight, lists, bias, *geometry)
        needed = (True, False)
        return _conv(dy, x, weight, lists, False, geometry, groups, pack, needed)[0], dw, db
    return _conv(dy, x, weight, lists, bias, geometry, groups, pack, (True, True))


def _conv(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    lists: Lists,
    bias: bool,
    geometry: tuple[Sequence[int], ...],
    groups: int,
    pack: Pack,
    needed: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    if groups > 1:
        return _grouped_conv(dy, x, weight, lists, bias, geometry, groups, pack, needed)
    width = _whole_blocks(lists)
    index = lists.padded[:width]
    packed, sums = pack(dy, index, width, 1, bias)
    rows = weight.index_select(0, index.clamp(min=0)) if needed[0] else _rows_like(weight, width)
    dx, dw = conv_gradients(packed, x, rows, geometry, 1, needed)
    db = spread(sums, lists) if bias else sums
    return dx, spread(dw, lists, like=weight) if needed[1] else dw, db


def _grouped_conv(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    lists: Lists,
    bias: bool,
    geometry: tuple[Sequence[int], ...],
    groups: int,
    pack: Pack,
    needed: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    places = lists.regrouped(groups)
    kept, index = places.groups.numel(), places.index
    # Padding between the channels of two groups is beyond what other backends promise.
    pack_dy = pack if index.numel() == lists.count else pack_channels
    packed, sums = pack_dy(dy, index, index.numel(), 1, bias)
    fan_in = weight.shape[1]
    inputs = places.groups[:, None] * fan_in + torch.arange(fan_in, device=x.device)
    inputs = inputs.flatten().to(torch.int32)
    if kept == groups:
        x_kept = x
    elif needed[1]:
        x_kept = pack(x, inputs, inputs.numel(), 1, False)[0]
    else:
        x_kept = torch.empty_like(x.narrow(1, 0, inputs.numel()))  # for its shape alone
    if needed[0]:
        rows = weight.index_select(0, index.clamp(min=0))
    else:
        rows = _rows_like(weight, index.numel())
    dx, dw = conv_gradients(packed, x_kept, rows, geometry, kept, needed)
    if needed[0] and kept < groups:
        dx = torch.zeros_like(x).index_copy_(1, inputs.long(), dx)
    db = spread(sums, places) if bias else sums
    return dx, spread(dw, places, like=weight) if needed[1] else dw, db


def conv_gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: tuple[Sequence[int], ...],
    groups: int,
    needed: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """(dX, dW) of a dense convolution, each only if ``needed``."""
    stride, padding, dilation = geometry
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups,
        [*needed, False],
    )  # fmt: skip
    return dx, dw


def mask_rows(grad: Tensor, lists: Lists, dim: int = 0) -> Tensor:
    """``grad`` with the frozen channels along ``dim`` set to zero, in a fresh tensor."""
    shape = [1] * grad.dim()
    shape[dim] = -1
    return torch.where((lists.inverse < lists.count).view(shape), grad, 0)


def spread(
    rows: Tensor, places: Lists | Regrouped, dim: int = 0, like: Tensor | None = None
) -> Tensor:
    """Full-shape gradient whose channel c is row ``places.inverse[c]`` of ``rows``, zero where
    that is ``places.count``; later rows are padding. ``like`` gives the strides of the result.

    One parallel pass writes every element once; zero-filling first would write the frozen rows'
    memory and then the active rows' again.
    """
    count = places.count
    if rows.shape[dim] > count:
        # Padding is zero times x: not a number where x is infinite.
        rows.narrow(dim, count, 1).zero_()
    else:
        zero_row = rows.new_zeros([1 if d == dim else s for d, s in enumerate(rows.shape)])
        rows = torch.cat([rows, _keep_format(zero_row, rows)], dim)
    if like is None or like.dim() not in (4, 5) or like.is_contiguous():
        full = rows.index_select(dim, places.inverse)
    else:
        # Channels are contiguous memory in channels_last too: select them in that order.
        last = [0, *range(2, rows.dim()), 1]
        back = [0, rows.dim() - 1, *range(1, rows.dim() - 1)]
        full = rows.permute(last).index_select(0, places.inverse).permute(back)
    return full if like is None else with_strides(full, like)


def with_strides(grad: Tensor, like: Tensor) -> Tensor:
    """``grad`` in the strides of ``like``, as autograd must have it to take it over uncopied."""
    if grad.stride() == like.stride():
        return grad
    differs = (
        a != b and n != 1 for n, a, b in zip(grad.shape, grad.stride(), like.stride(), strict=True)
    )
    if any(differs):
        strided = torch.empty_strided(
            like.shape, like.stride(), dtype=grad.dtype, device=grad.device
        )
        return strided.copy_(grad)
    return grad.as_strided(like.shape, like.stride())


def _whole_blocks(lists: Lists) -> int:
    # Vendor kernels work in blocks of channels, and some fall off a cliff between them.
    return min(-(-lists.count // BLOCK) * BLOCK, lists.size)


def as_rows(tensor: Tensor) -> Tensor:
    """``[..., C]`` as ``[M, C]``, a view where strides allow."""
    return tensor.flatten(0, -2) if tensor.dim() > 1 else tensor.unsqueeze(0)


def _rows_like(weight: Tensor, count: int) -> Tensor:
    channels_last = weight.dim() in (4, 5) and not weight.is_contiguous()
    return torch.empty(
        (count, *weight.shape[1:]),
        dtype=weight.dtype,
        device=weight.device,
        memory_format=_channels_last(weight.dim()) if channels_last else torch.contiguous_format,
    )


def _keep_format(tensor: Tensor, like: Tensor) -> Tensor:
    if like.dim() not in (4, 5) or like.is_contiguous():
        return tensor
    return tensor.contiguous(memory_format=_channels_last(like.dim()))


def _channels_last(dims: int) -> torch.memory_format:
    return torch.channels_last if dims == 4 else torch.channels_last_3d
