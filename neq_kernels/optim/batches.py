"""The operator calls of a step, and when those of the last step serve again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neq_kernels.optim.rows import PLAIN, Rows

Key = tuple[torch.device, torch.dtype, bool]
Group = dict[str, Any]
Gradients = list[Tensor | None]

_nothing = torch.empty(0, dtype=torch.int32, device="cpu")


@dataclass
class Batch:
    """The parameters of one operator call, where in their group they are, their active rows.

    ``states`` has a list per name of a state; ``fresh``: those began in this step.
    """

    key: Key
    fresh: bool = False
    places: list[int] = field(default_factory=list)
    params: list[Tensor] = field(default_factory=list)
    states: list[list[Tensor]] = field(default_factory=list)
    index: list[Tensor] = field(default_factory=list)
    count: list[int] = field(default_factory=list)
    dim: list[int] = field(default_factory=list)

    def add(
        self, place: int, parameter: Tensor, states: Sequence[Tensor], rows: Rows | None
    ) -> None:
        self.places.append(place)
        self.params.append(parameter)
        self.states = self.states or [[] for _ in states]
        for each, state in zip(self.states, states, strict=True):
            each.append(state)
        self.index.append(_nothing if rows is None else rows.index)
        self.count.append(-1 if rows is None else rows.count)
        self.dim.append(0 if rows is None else rows.dim)

    def gradients(self, of_group: Gradients) -> list[Tensor]:
        """This batch's among those of the group."""
        return [of_group[place] for place in self.places]  # type: ignore[misc]

    def real(self, tensors: list[Tensor]) -> list[Tensor]:
        """``tensors`` of this batch as operators take them: complex ones with one more dimension.

        Views are made anew at each step: a parameter's data may have been swapped since.
        """
        if not self.key[1].is_complex:
            return tensors
        # AdamW's count of steps is real.
        return [torch.view_as_real(t) if t.is_complex() else t for t in tensors]


class Formula(NamedTuple):
    """How an optimizer steps: its operator, the states that a group's steps read, and the call."""

    operator: str
    state_names: Callable[[Group], tuple[str, ...]]
    step: Callable[[Group, Batch, list[Tensor]], None]


class Plan:
    """The batches of every group, as long as nothing they were made from is another object.

    Looking up a parameter's state and rows costs more than stepping a small layer. Of a plan that
    serves again only the gradients are looked up.
    """

    def __init__(self, batches: list[list[Batch]], objects: list[Any], facts: list[Any]) -> None:
        self.batches = batches
        self._objects = objects
        self._facts = facts

    def serves(self, objects: list[Any], facts: list[Any]) -> bool:
        """Whether ``objects`` are the same ones, and ``facts`` equal, as when it was made."""
        return (
            len(objects) == len(self._objects)
            and all(map(is_, objects, self._objects))
            and facts == self._facts
        )


def objects_of(optimizer: Optimizer, rows: Mapping[nn.Parameter, Rows]) -> list[Any]:
    """What batches are made from: the rows, the parameters, and all of their state."""
    objects: list[Any] = [rows]
    for group in optimizer.param_groups:
        objects += group["params"]
    for state in optimizer.state.values():
        objects += state.values()
    return objects


def facts_of(parameters: list[nn.Parameter], gradients: Gradients, names: Sequence[str]) -> Any:
    """What decides how a group's parameters are put into batches, besides which objects there are.

    ``names`` are those of the states in use.
    """
    return (
        names,
        [(p.device, p.dtype) for p in parameters],
        [None if g is None else g.layout for g in gradients],
    )


def key_of(parameter: Tensor) -> Key:
    """What the parameters of one operator call have in common."""
    return parameter.device, parameter.dtype, type(parameter) in PLAIN


def gradients_of(optimizer: Optimizer) -> list[Gradients]:
    """Those of every group."""
    return [[p.grad for p in group["params"]] for group in optimizer.param_groups]
