"""The input gradient of a convolution in plain torch, and linear layers seen as convolutions; part
of :mod:`neq_kernels.reference`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from neq_kernels.active import Lists


def conv_dgrad(
    dy: Tensor,
    weight: Tensor,
    lists: Lists,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    channels_last: bool,
) -> Tensor:
    """``dX[n, c, u] = sum over i, r of weight[index[i], c, r] * dy[n, index[i], p]`` for all p with
    ``p*stride + r*dilation - padding = u``, in 1 to 3 spatial dimensions, without groups: what a
    dense backward gives whose ``dy`` is zero in the frozen channels.

    Shapes: dy ``[N, O, *out]``, weight ``[O, C, *kernel]``; dX ``[N, C, *size]``, in channels_last
    if so asked.
    """
    memory_format = torch.contiguous_format
    if channels_last:
        memory_format = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    dx = dy.new_empty((dy.shape[0], weight.shape[1], *size)).to(memory_format=memory_format)
    if not lists.count:
        return dx.zero_()
    packed, rows = dy.index_select(1, lists.index), weight.index_select(0, lists.index)
    found, _, _ = torch.ops.aten.convolution_backward(
        packed, dx, rows, None, stride, padding, dilation, False, [0] * len(stride), 1,
        [True, False, False],
    )  # fmt: skip
    return dx.copy_(found)


def in_channels_last(x: Tensor) -> bool:
    """Whether torch's gradient of this input of a convolution is in channels_last."""
    return x.dim() == 4 and x.stride(1) == 1 and x.stride(3) >= x.shape[1]


def as_positions(*tensors: Tensor) -> list[Tensor]:
    """Each ``[..., C]`` as ``[N, C, positions]``, the channels side by side; copied only where more
    than two dimensions of tokens have strides that do not join."""
    if tensors[0].dim() == 3 and not all(tensor.is_contiguous() for tensor in tensors):
        return [tensor.transpose(1, 2) for tensor in tensors]
    return [tensor.reshape(-1, tensor.shape[-1]).t().unsqueeze(0) for tensor in tensors]


def linear_dgrad_as_conv(
    dgrad: Callable[..., Tensor], dy: Tensor, weight: Tensor, lists: Lists, columns: bool
) -> Tensor:
    """``dX = dy[..., index] @ W[index]`` by what computes :func:`conv_dgrad`: a linear layer is a
    convolution along its tokens, with a window of one and its channels side by side.

    Shapes: dy ``[..., O]``, weight ``[O, I]`` (``[I, O]`` when ``columns``); dX ``[..., I]``.
    """
    matrix = (weight.t() if columns else weight)[:, :, None, None]
    tokens = as_positions(dy)[0].unsqueeze(2)
    dx = dgrad(tokens, matrix, lists, tokens.shape[2:], (1, 1), (0, 0), (1, 1), True)
    return dx.permute(0, 2, 3, 1).reshape(*dy.shape[:-1], matrix.shape[1])
