"""Which channels of a traced forward have to go or stay together.

Every dimension of every tensor is a list of *atoms*, or None where its size is given from outside
(batch, positions, kernel taps). An atom stands for one channel of a parameter, and is found in all
tensors it runs through; removing it takes its slice out of all of them. Where an operator needs two
channels side by side, as a sum of two branches does, their atoms are joined. Atoms that an operator
cannot do without are pinned, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from neq_kernels.pruning.shrink.trace import Call, Graph, Value

Axis = Tensor | None


class Axes:
    """The atoms of each value, and the classes they have been joined to.

    Attributes:
        bold: split channels into heads, and take slices of them, as if the model computed those
            sizes from its tensors; else such channels are pinned.
        dared: whether that made a difference.
    """

    def __init__(self, bold: bool) -> None:
        self.bold = bold
        self.dared = False
        self.pins: list[tuple[int, str]] = []
        self._axes: dict[Value, list[Axis]] = {}
        self._parents: list[int] = []

    def __getitem__(self, value: Value) -> list[Axis]:
        if value not in self._axes:
            sized = value.shape if value.leaf is not None else ()
            self._axes[value] = [self.new(n) if n > 1 else None for n in sized]
            self._axes[value] = self._axes[value] or [None] * len(value.shape)
        return self._axes[value]

    def __contains__(self, value: Value) -> bool:
        """Whether a call has met ``value``."""
        return value in self._axes

    def __setitem__(self, value: Value, axes: Sequence[Axis]) -> None:
        # One neuron cannot go without the layer, nor does one broadcast as several do.
        self._axes[value] = [a if n > 1 else None for a, n in zip(axes, value.shape, strict=True)]

    def new(self, count: int) -> Tensor:
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def find(self, atom: int) -> int:
        """The atom that stands for the class of ``atom``."""
        parents = self._parents
        while parents[atom] != atom:
            parents[atom] = parents[parents[atom]]
            atom = parents[atom]
        return atom

    def roots(self) -> Tensor:
        """``[atoms]``: the class of each."""
        return torch.tensor([self.find(a) for a in range(len(self._parents))], dtype=torch.int64)

    def of_roots(self, axis: Tensor) -> Tensor:
        found = [self.find(a) for a in axis.flatten().tolist()]
        return torch.tensor(found, dtype=torch.int64).reshape(axis.shape)

    def pin(self, axis: Axis, reason: str) -> None:
        """Keep all of ``axis``."""
        if axis is not None:
            self.pins.extend((a, reason) for a in axis.flatten().tolist())

    def join(self, axes: Iterable[Axis], reason: str) -> Axis:
        """Make one of several views of the same channels. Where one of them is None, its size is
        given from outside: the others are pinned."""
        given = list(axes)
        known = [a for a in given if a is not None]
        for other in known[1:]:
            for a, b in zip(known[0].tolist(), other.tolist(), strict=True):
                self._parents[self.find(b)] = self.find(a)
        if len(known) < len(given):
            for axis in known:
                self.pin(axis, reason)
        return known[0] if known else None

    def pin_all(self, values: Iterable[Value], reason: str) -> None:
        for value in values:
            for axis in self[value]:
                self.pin(axis, reason)

    def dare(self, axis: Axis, reason: str) -> bool:
        """Whether to take sizes that may be written in the model as following its tensors."""
        if axis is None:
            return True
        self.dared = True
        if not self.bold:
            self.pin(axis, reason)
        return self.bold


Rule = Callable[[Axes, Call], None]


def follow(axes: Axes, graph: Graph, rules: dict[str, Rule], opaque: dict[str, str]) -> list[Call]:
    """Run the rule of each call; what no rule understands, and calls inside the modules
    ``opaque``, keep all their channels. Returns the calls that were understood."""
    understood = []
    for call in graph.calls:
        inside = next((name for name in call.where if name in opaque), None)
        rule = rules.get(call.op)
        if inside is not None:
            _keep_all(axes, call, opaque[inside])
        elif call.function is None:
            _keep_all(axes, call, f"{call.module or 'the model'} {call.op}")
        elif all(v.made is not None for v in call.outputs) and call.outputs:
            continue
        elif rule is None:
            _keep_all(
                axes, call, f"{call.op} in {call.module or 'the model'}, of which nothing is known"
            )
        else:
            rule(axes, call)
            understood.append(call)
    for value in graph.outputs:
        axes.pin_all([value], "the model's output")
    return understood


def _keep_all(axes: Axes, call: Call, reason: str) -> None:
    axes.pin_all(call.inputs, reason)


def elementwise(axes: Axes, call: Call) -> None:
    """Channels that meet in a sum, a product, ... go or stay together."""
    out = call.outputs[0]
    rank, where = len(out.shape), f"{call.op} in {call.module or 'the model'}"
    result: list[Axis] = []
    for dim in range(rank):
        meeting = []
        for value in call.inputs:
            own = dim - rank + len(value.shape)
            if own >= 0 and value.shape[own] == out.shape[dim] > 1:
                meeting.append(axes[value][own])
        result.append(axes.join(meeting, f"{where}: the other side has a given size"))
    axes[out] = result


def carried(*kept: int) -> Rule:
    """A rule for operators that keep the dimensions ``kept`` and mix positions along the others."""

    def rule(axes: Axes, call: Call) -> None:
        source = call.args["self"] if "self" in call.args else call["input"]
        given = axes[source]
        for dim, axis in enumerate(given):
            if dim not in kept:
                axes.pin(axis, f"{call.op} in {call.module or 'the model'} mixes them")
        for out in call.outputs:
            axes[out] = [
                given[d] if d in kept and d < len(given) else None for d in range(len(out.shape))
            ]

    return rule
