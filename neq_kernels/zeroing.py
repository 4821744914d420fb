"""Torch's own backward, with zeros for frozen neurons: for layers where that is the fastest.

A hook on the autograd node that makes a layer's gradients zeroes their frozen rows. That costs a
fraction of an autograd Function, and goes with torch's backward at any order of differentiation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from neq_kernels.active import capturing, check_unchanged, lists

Gradients = tuple[Tensor | None, ...]
Places = Sequence[tuple[int, int]]

# Nodes whose gradients are nobody else's. Where each has those of weight and bias: position among
# the node's gradients, and the dimension that counts neurons.
_WEIGHT_AND_BIAS = ((1, 0), (2, 0))
NODES: dict[str, Places] = {
    "ConvolutionBackward0": _WEIGHT_AND_BIAS,
    "NativeBatchNormBackward0": _WEIGHT_AND_BIAS,
    "CudnnBatchNormBackward0": _WEIGHT_AND_BIAS,
    "MiopenBatchNormBackward0": _WEIGHT_AND_BIAS,
    "NativeLayerNormBackward0": _WEIGHT_AND_BIAS,
    # bias + x @ W^T, or x @ W^T: neurons are the product's columns.
    "AddmmBackward0": ((2, 1), (0, 0)),
    "MmBackward0": ((1, 1),),
}
_RESHAPES = {"ViewBackward0", "UnsafeViewBackward0"}


class Use(NamedTuple):
    """One use of a layer's parameters. ``nodes``: where the graphs of its tensors begin; what lies
    beyond belongs to others."""

    weight: Tensor | None
    bias: Tensor | None
    nodes: frozenset[Any]


class Zeroing:
    """Zeroes gradients of the neurons frozen now; a backward raises if the set has changed by then.

    index: int32 ``[size]``, count: 0-d int64, mask: bool ``[size]``: the same set in three forms.
    ``dim`` of the weight counts neurons.
    """

    def __init__(self, index: Tensor, count: Tensor, mask: Tensor, dim: int) -> None:
        self._index, self._mask, self._version = index, mask, index._version
        self._dim = dim
        follows = index.device.type != "cpu" or capturing(index)
        # A device reads the set as a captured graph finds it.
        self._frozen = None if follows else lists(index, count).frozen

    def attach(self, output: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        """Zero the frozen rows of what ``weight`` and ``bias`` get from every backward through
        ``output``, which was computed from them and ``x``."""
        node: Any = output.grad_fn
        use = Use(weight, bias, frozenset((x.grad_fn,)))
        name = node.name()
        if name in _RESHAPES:
            node = node.next_functions[0][0]
            name = node.name()
        if name in NODES:
            node.register_hook(partial(self._in_place, NODES[name], use))
        else:
            self._search((output,), use)

    def _search(self, tensors: Sequence[Tensor | None], use: Use) -> None:
        """Put hooks wherever the parameters are used in the graphs of ``tensors``."""
        parameters = ((use.weight, self._dim), (use.bias, 0))
        dims = {
            get_gradient_edge(p)[:2]: dim
            for p, dim in parameters
            if p is not None and p.requires_grad
        }
        waiting = [tensor.grad_fn for tensor in tensors if tensor is not None]
        seen = set(use.nodes)
        while waiting:
            node: Any = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            edges = node.next_functions
            places = [(i, dims[edge]) for i, edge in enumerate(edges) if edge in dims]
            if places:
                node.register_hook(partial(self._after, places, use))
            waiting += [edge[0] for edge in edges if edge not in dims]

    def _in_place(
        self, places: Places, use: Use, gradients: Gradients, outer: Gradients
    ) -> Gradients | None:
        """The hook of a node whose gradients are nobody else's."""
        if self._frozen is None or torch.is_grad_enabled():
            return self._after(places, use, gradients, outer)
        check_unchanged(self._index, self._version)
        for position, dim in places:
            gradient = gradients[position]
            if gradient is None:
                continue
            if dim == 1 and gradient.stride(0) < gradient.stride(1):
                # index_fill_ would go through the neurons one element after the other.
                gradient, dim = gradient.t(), 0
            gradient.index_fill_(dim, self._frozen, 0)
        return None

    def _after(self, places: Places, use: Use, gradients: Gradients, outer: Gradients) -> Gradients:
        """The hook of a node: ``gradients`` are what it made of ``outer``."""
        check_unchanged(self._index, self._version)
        if torch.is_grad_enabled():
            # What is differentiated again may depend on the parameters past this node.
            beyond = {gradient.grad_fn for gradient in outer if gradient is not None}
            self._search(gradients, use._replace(nodes=use.nodes | beyond))
        zeroed = list(gradients)
        for position, dim in places:
            gradient = zeroed[position]
            if gradient is not None:
                zeroed[position] = self._zeroed(gradient, dim)
        return tuple(zeroed)

    def _zeroed(self, gradient: Tensor, dim: int) -> Tensor:
        if self._frozen is not None:
            return gradient.index_fill(dim, self._frozen, 0)
        shape = [1] * gradient.dim()
        shape[dim] = -1
        return torch.where(self._mask.view(shape), gradient, 0)
