"""What is known of every tensor of a traced forward, worked out call by call.

A :class:`Known` is a small tensor beside the real one: its dimensions have size 1 wherever nothing
changes along them, so that what holds for a channel holds at every position, in every sample and at
every resolution. Pointwise operators then apply to it as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from neq_kernels.pruning.shrink import known_layers, known_shapes
from neq_kernels.pruning.shrink.base import Known, fixed, unknown
from neq_kernels.pruning.shrink.trace import Call, Value

RULES: dict[str, Any] = {**known_shapes.RULES, **known_layers.RULES}


class Knowledge:
    """What is known of each value of a graph."""

    def __init__(self) -> None:
        self._known: dict[Value, Known] = {}

    def of(self, value: Value) -> Known:
        if value.leaf is not None:
            return fixed(value.leaf.tensor)
        if value.transposed is not None:
            return fixed(value.transposed.tensor.t())
        return self._known.get(value) or unknown(value.shape)

    def learn(self, call: Call) -> None:
        """Say what the outputs of ``call`` are, given its inputs."""
        first = call.outputs[0] if call.outputs else None
        if first is None:
            return
        if first.made is not None:
            self._known[first] = fixed(first.made)
        elif rule := RULES.get(call.op):
            for value, found in zip(call.outputs, _listed(rule(self.of, call)), strict=False):
                self._known[value] = found
        elif is_pointwise(call):
            self._known[first] = _pointwise(self, call)


def _listed(found: Known | list[Known]) -> list[Known]:
    return found if isinstance(found, list) else [found]


# Pointwise by what they compute, though not tagged so.
_UNTAGGED = {
    "hardswish", "_prelu_kernel", "hardsigmoid", "leaky_relu", "elu", "mish", "softplus", "copy",
    "hardtanh", "silu", "gelu", "rrelu_with_noise_functional", "celu", "log_sigmoid_forward",
}  # fmt: skip


def is_pointwise(call: Call) -> bool:
    """Whether each element of the (only) output depends on the elements at its place alone."""
    if call.function is None or not call.outputs or call.op in known_shapes.SAME:
        return False
    if torch.Tag.nondeterministic_seeded in call.function.tags:
        return False
    return torch.Tag.pointwise in call.function.tags or call.op in _UNTAGGED


def _pointwise(knowledge: Knowledge, call: Call) -> Known:
    given = {v: knowledge.of(v) for v in call.inputs}
    rank = len(call.outputs[0].shape)

    def padded(t: Tensor) -> Tensor:
        return t.reshape([1] * (rank - t.dim()) + list(t.shape))

    masks = [padded(known.mask) for known in given.values()]
    shape = torch.broadcast_shapes(*(m.shape for m in masks))
    mask = torch.stack([m.expand(shape) for m in masks]).all(0)
    if call.op == "copy":
        source = given[call["src"]]
        return Known(padded(source.mask), padded(source.value))
    if not mask.any() and call.op != "mul":
        return unknown(call.outputs[0].shape)
    args = tree_map_only(Value, lambda v: padded(given[v].value), call.args)
    value = _functional(call)(**args)
    if call.op == "mul":  # whatever zero is multiplied with
        for known in given.values():
            mask = mask | (padded(known.mask) & (padded(known.value) == 0)).expand(shape)
    value = value.double() if value.is_floating_point() else value
    return Known(mask, torch.where(mask, value, torch.zeros_like(value)))


def _functional(call: Call) -> Any:
    """The operator that does not write into its argument, taking keywords only."""
    function = call.function
    if function._schema.is_mutable:
        function = getattr(getattr(torch.ops.aten, call.op), function._overloadname)
    return function
