"""Optimizer steps over the active rows of many tensors, in plain torch.

In each: ``params[i]`` is stepped where neuron ``index[i][k]``, k < ``count[i]``, along dimension
``dim[i]``; everywhere if ``count[i]`` is -1 (``index[i]`` and ``dim[i]`` are then not read). Frozen
rows of parameters and state are neither read nor written. All tensors of one parameter have its
shape and dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = Sequence[Tensor]
Counts = Sequence[int]


@torch.no_grad()
def row_sgd(
    params: Tensors,
    grads: Tensors,
    momentum_buffers: Tensors,
    index: Tensors,
    count: Counts,
    dim: Counts,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """A step of SGD: ``g = grad + weight_decay * p`` (``-grad`` to maximize); with momentum
    ``b = momentum * b + (1 - dampening) * g`` and then ``g = g + momentum * b`` if ``nesterov``,
    else ``g = b``; ``p = p - lr * g``. Without momentum, ``momentum_buffers`` is not read."""
    rows = _Rows(index, count, dim)
    p, g = rows.take(params), rows.take(grads)
    if not p:
        return
    if maximize:
        g = list(torch._foreach_neg(g))
    if weight_decay != 0:
        g = list(torch._foreach_add(g, p, alpha=weight_decay))
    if momentum != 0:
        b = rows.take(momentum_buffers)
        torch._foreach_mul_(b, momentum)
        torch._foreach_add_(b, g, alpha=1 - dampening)
        rows.put(momentum_buffers, b)
        g = list(torch._foreach_add(g, b, alpha=momentum)) if nesterov else b
    torch._foreach_add_(p, g, alpha=-lr)
    rows.put(params, p)


@torch.no_grad()
def row_adamw(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    max_exp_avg_sqs: Tensors,
    steps: Tensors,
    index: Tensors,
    count: Counts,
    dim: Counts,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    amsgrad: bool,
    maximize: bool,
) -> None:
    """A step of Adam, counted in ``steps`` (0-d, CPU): ``p = (1 - lr * weight_decay) * p`` if
    ``decoupled`` (AdamW, arXiv 1711.05101), else ``g = g + weight_decay * p``;
    ``m = beta1 * m + (1 - beta1) * g``, ``v = beta2 * v + (1 - beta2) * g^2``;
    ``p = p - lr / (1 - beta1^t) * m / (sqrt(d / (1 - beta2^t)) + eps)``, where d is v, or with
    ``amsgrad`` the largest v so far. Without it, ``max_exp_avg_sqs`` is not read."""
    rows = _Rows(index, count, dim)
    p, m, v = (rows.take(tensors) for tensors in (params, exp_avgs, exp_avg_sqs))
    g = rows.take(grads)
    if not p:
        return
    torch._foreach_add_(list(steps), 1)
    taken = [float(step) for step in steps]
    if maximize:
        g = list(torch._foreach_neg(g))
    if decoupled:
        torch._foreach_mul_(p, 1 - lr * weight_decay)
    elif weight_decay != 0:
        g = list(torch._foreach_add(g, p, alpha=weight_decay))
    torch._foreach_lerp_(m, g, 1 - beta1)
    torch._foreach_mul_(v, beta2)
    torch._foreach_addcmul_(v, g, g, 1 - beta2)
    largest = v
    if amsgrad:
        largest = rows.take(max_exp_avg_sqs)
        torch._foreach_maximum_(largest, v)
        rows.put(max_exp_avg_sqs, largest)
    scale = torch._foreach_sqrt(largest)
    torch._foreach_div_(scale, [(1 - beta2**t) ** 0.5 for t in taken])
    torch._foreach_add_(scale, eps)
    torch._foreach_addcdiv_(p, m, scale, [-lr / (1 - beta1**t) for t in taken])
    for tensors, values in ((params, p), (exp_avgs, m), (exp_avg_sqs, v)):
        rows.put(tensors, values)


class _Rows:
    """The active rows of a list of tensors: copies of them, or the tensor where all are active."""

    def __init__(self, index: Tensors, count: Counts, dim: Counts) -> None:
        self.index = [i[: max(n, 0)] for i, n in zip(index, count, strict=True)]
        self.all = [n < 0 for n in count]
        self.dim = dim

    def take(self, tensors: Tensors) -> list[Tensor]:
        lists = zip(tensors, self.all, self.index, self.dim, strict=True)
        return [t if full else t.index_select(dim, index) for t, full, index, dim in lists]

    def put(self, tensors: Tensors, values: Tensors) -> None:
        lists = zip(tensors, values, self.all, self.index, self.dim, strict=True)
        for tensor, value, full, index, dim in lists:
            if not full:
                tensor.index_copy_(dim, index.long(), value)
