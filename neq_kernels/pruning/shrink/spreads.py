"""Branches of a sum: each may compute fewer channels than the sum has.

A sum takes its channels side by side, so that one stays in all branches when it is live in one.
Where a branch ends in a layer that a hook can be put on, that hook sets the computed channels into
their places, between constants (:class:`neq_kernels.pruning.shrink.hooks.ConstantOutputs`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from neq_kernels.pruning.shrink.axes import Axes
from neq_kernels.pruning.shrink.hooks import LIVE_OUTPUTS, output_dim
from neq_kernels.pruning.shrink.known import Knowledge
from neq_kernels.pruning.shrink.trace import Call, Graph, Value

#: The operator that the hook is in a traced forward: once it is there, and before.
PRESENT, POSSIBLE = "index_copy", "spread"


@dataclass(frozen=True)
class Spread:
    """Where channels ``inner`` that a layer computes become the channels ``outer`` of a sum.

    ``name``: of the layer. ``dim``: of its outputs. ``places`` ``[inner]``: where each is among the
    outer ones. ``mask``, ``value`` ``[inner]``: which are constant, and what they are. ``present``:
    whether the hook is there already.
    """

    name: str
    dim: int
    inner: Tensor
    outer: Tensor
    places: Tensor
    mask: Tensor
    value: Tensor
    present: bool


def prepare(graph: Graph, model: nn.Module) -> None:
    """Put a call of :data:`POSSIBLE` behind each layer that writes into a sum, in place."""
    modules, times = dict(model.named_modules()), Counter(graph.returned.values())
    producers = {v: call for call in graph.calls for v in call.outputs}
    for value, name in graph.returned.items():
        dim, last = output_dim(modules[name]), producers.get(value)
        if dim is None or last is None or last.op == PRESENT or times[name] > 1:
            continue
        readers = [call for call in graph.calls if any(v is value for v in call.inputs)]
        if any(_adds(call, value) for call in readers):
            whole = Value(value.shape)
            for call in readers:
                call.args = _replaced(call.args, value, whole)
            graph.outputs = [whole if v is value else v for v in graph.outputs]
            args = {"self": value, "dim": dim % len(value.shape), "module": name}
            spread = Call(POSSIBLE, torch.ops.aten.alias.default, args, [whole], last.where)
            graph.calls.insert(graph.calls.index(last) + 1, spread)


def _replaced(args: dict[str, Any], old: Value, new: Value) -> dict[str, Any]:
    def choose(value: Value) -> Value:
        return new if value is old else value

    replaced: dict[str, Any] = tree_map_only(Value, choose, args)
    return replaced


def _adds(call: Call, value: Value) -> bool:
    """Whether ``call`` adds something else of the same shape to ``value``."""
    return call.op == "add" and any(
        v is not value and v.shape == value.shape and v.leaf is None for v in call.inputs
    )


class Rules:
    """Rules that follow channels through the hooks, and note in ``met`` which they are.

    Args:
        joined: names of layers that are to compute all channels of the sum.
    """

    def __init__(self, knowledge: Knowledge, joined: Collection[str]) -> None:
        self.met: list[Spread] = []
        self._knowledge = knowledge
        self._joined = joined

    def possible(self, axes: Axes, call: Call) -> None:
        given, dim = list(axes[call["self"]]), call["dim"]
        inner = given[dim]
        if inner is not None and call["module"] not in self._joined:
            outer = given[dim] = axes.new(len(inner))
            self._note(call["module"], call["self"], dim, inner, outer, None)
        axes[call.outputs[0]] = given

    def present(self, axes: Axes, call: Call) -> None:
        given, dim = list(axes[call["source"]]), call["dim"] % len(call["self"].shape)
        inner, outer, index = given[dim], axes[call["self"]][dim], call["index"].leaf
        ours = index is not None and index.name.endswith(LIVE_OUTPUTS)
        if inner is None or outer is None or not ours:
            axes.pin_all(call.inputs, f"{call.op} in {call.module or 'the model'}")
            return
        axes.join([inner, axes[call["index"]][0]], "")
        self._note(call.module, call["source"], dim, inner, outer, index.tensor.cpu())
        given[dim] = outer
        axes[call.outputs[0]] = given

    def _note(
        self, name: str, value: Value, dim: int, inner: Tensor, outer: Tensor, live: Tensor | None
    ) -> None:
        mask, _, constant = self._knowledge.of(value).along(dim, len(inner))
        places = torch.arange(len(inner)) if live is None else live
        self.met.append(
            Spread(name, dim, inner, outer, places, mask, constant.double(), live is not None)
        )
