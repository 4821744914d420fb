"""The input gradient of a convolution in plain torch; part of :mod:`neq_kernels.reference`."""

from __future__ import annotations

from collections.abc import Sequence

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
    active = lists.index[: lists.count]
    packed, rows = dy.index_select(1, active), weight.index_select(0, active)
    found, _, _ = torch.ops.aten.convolution_backward(
        packed, dx, rows, None, stride, padding, dilation, False, [0] * len(stride), 1,
        [True, False, False],
    )  # fmt: skip
    return dx.copy_(found)
