"""How steep the activation behind each layer is, read from the autograd graph of a forward.

Functional and in-place activations, and modules used several times, are found alike. From the node
that made a layer's output the graph is followed towards the model's output, through norms, sums,
pooling, casts and reshapes that keep the channels where they are, up to the first activation. The
activation's own input counts as the neuron's potential, so a batch norm in between is part of it. A
layer whose output becomes the model's has the identity as its activation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Node = Any  # torch.autograd.graph.Node, whose saved tensors have no annotations

ACTIVATIONS = {
    "Relu", "Gelu", "Silu", "Tanh", "Sigmoid", "Elu", "LeakyRelu", "Hardtanh", "Hardswish",
    "Hardsigmoid", "Mish", "Softplus",
}  # fmt: skip
_THROUGH = {
    "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeLayerNorm", "NativeGroupNorm",
    "Add", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "AvgPool2D", "AvgPool3D",
    "AdaptiveAvgPool2D", "AdaptiveMaxPool2D", "NativeDropout", "FusedDropout", "ToCopy", "Clone",
    "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Tether",
}  # fmt: skip


class Graph:
    """The autograd graph above a model's outputs, walked from its layers up."""

    def __init__(self, outputs: Iterable[Tensor]) -> None:
        self.ends = {output.grad_fn for output in outputs if output.grad_fn is not None}
        self.consumers: dict[Node, list[Node]] = {node: [] for node in self.ends}
        waiting = list(self.ends)
        while waiting:
            node = waiting.pop()
            for child, _ in node.next_functions:
                if child is None:
                    continue
                if child not in self.consumers:
                    self.consumers[child] = []
                    waiting.append(child)
                self.consumers[child].append(node)

    def activation(self, start: Node, shape: torch.Size, axis: int) -> Node | None:
        """The first activation node that the output of ``start`` (of this shape, with its channels
        along ``axis``) reaches; of several equally near the one that ran first. None if the output
        is the model's own, or does not reach the model's output.

        Raises:
            LookupError: there is none before the graph goes where the channels cannot be followed.
        """
        near, seen, blocked, ends = [start], {start}, [], start in self.ends
        while near:
            found, further = [], []
            for node in near:
                for consumer in self.consumers.get(node, ()):
                    if consumer in seen:
                        continue
                    seen.add(consumer)
                    kind = kind_of(consumer)
                    if kind in ACTIVATIONS and _fits(consumer, shape, axis):
                        found.append(consumer)
                    elif kind in _THROUGH and _fits(consumer, shape, axis):
                        further.append(consumer)
                        ends |= consumer in self.ends
                    else:
                        blocked.append(consumer)
            if found:
                return min(found, key=lambda node: node._sequence_nr())
            near = further
        if blocked and not ends:
            raise LookupError(blocked[0].name())
        return None


def kind_of(node: Node) -> str:
    """The operator that ``node`` is the backward of: ``"Relu"`` of ReluBackward0."""
    return node.name().rstrip("0123456789").removesuffix("Backward")


def steepness(node: Node, axis: int) -> tuple[Tensor, int]:
    """Sum of |d activation / d input| over samples and positions, fp32 ``[channels]``, and the
    number of its terms."""
    if kind_of(node) == "Relu":
        slope = node._saved_result.sign()
    else:
        output = node._input_metadata[0]
        ones = torch.ones(output.shape, dtype=output.dtype, device=output.device)
        slope = node(ones).abs()
    axes = [dim for dim in range(slope.dim()) if dim != axis % slope.dim()]
    total = slope.sum(axes, dtype=torch.promote_types(slope.dtype, torch.float32))
    return total, slope.numel() // max(1, len(total))


def _fits(node: Node, shape: torch.Size, axis: int) -> bool:
    """Whether the output of the operator has the channels where the layer's has them."""
    got = node._input_metadata[0].shape if node._input_metadata else None
    return got is not None and len(got) == len(shape) and got[axis] == shape[axis]
