"""Where the neurons of an optimizer's parameters are: the active ones to step, the frozen ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neq_kernels.active import ActiveSet
from neq_kernels.layer import NEqLayer, changes

PLAIN = nn.Parameter, Tensor


class FrozenRows:
    """The frozen neurons of one active set, as slices of tensors along ``dim``."""

    def __init__(self, active: ActiveSet, dim: int) -> None:
        self.active = active
        self.dim = dim
        self.all = active.is_empty
        self._index = {torch.device("cpu"): active.frozen}

    def index(self, device: torch.device) -> Tensor:
        if device not in self._index:
            frozen = self._index[torch.device("cpu")]
            self._index[device] = frozen.to(device, non_blocking=True)
        return self._index[device]

    def read(self, tensor: Tensor, into: Tensor | None = None) -> Tensor:
        """A copy, written over ``into``, an earlier copy, if that still fits: to touch fresh memory
        takes longer than to copy."""
        if into is None or not self._fits(into, tensor):
            if self.all:
                return tensor.clone()
            return tensor.index_select(self.dim, self.index(tensor.device))
        if self.all:
            return into.copy_(tensor)
        return torch.index_select(tensor, self.dim, self.index(tensor.device), out=into)

    def write(self, tensor: Tensor, values: Tensor) -> None:
        if self.all:
            tensor.copy_(values)
        else:
            tensor.index_copy_(self.dim, self.index(tensor.device), values)

    def zero(self, tensor: Tensor) -> None:
        if self.all:
            tensor.zero_()
        else:
            tensor.index_fill_(self.dim, self.index(tensor.device), 0)

    def _fits(self, copy: Tensor, tensor: Tensor) -> bool:
        shape = list(tensor.shape)
        shape[self.dim] = self.active.size - self.active.count
        like = copy.dtype == tensor.dtype and copy.device == tensor.device
        # A subclass may not know how to write into a tensor that it is given.
        return like and list(copy.shape) == shape and type(tensor) in PLAIN


@dataclass(frozen=True, eq=False)
class Rows:
    """The neurons of one parameter: ``index[:count]`` (int32, on its device) are active."""

    index: Tensor
    count: int
    dim: int
    frozen: FrozenRows


class RowMap:
    """The rows of each parameter of ``model`` that has frozen ones, as the layers have them now."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._rows: dict[nn.Parameter, Rows] = {}
        self._seen: object = None

    def look_up(self, *, anew: bool = False) -> dict[nn.Parameter, Rows]:
        """Walks the model only when the set of a layer has changed, or to look ``anew``: layers do
        not tell when a parameter is replaced. Rows that have not changed are the same object."""
        if anew or self._seen is not changes.last:
            self._seen = changes.last
            self._rows = self._walk()
        return self._rows

    def _walk(self) -> dict[nn.Parameter, Rows]:
        found = {}
        for layer in self.model.modules():
            if not isinstance(layer, NEqLayer) or layer.active.is_full:
                continue
            active, index = layer.active, layer.index
            for _, parameter, dim in layer.neuron_parameters():
                rows = self._rows.get(parameter)
                if rows is None or rows.frozen.active is not active or rows.index is not index:
                    rows = Rows(index, active.count, dim, FrozenRows(active, dim))
                found[parameter] = rows
        return found


def owned(optimizer: Optimizer) -> set[int]:
    """The ids of the parameters that ``optimizer`` steps."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def check_model(optimizer: Optimizer, model: Any, remedy: str) -> None:
    """Raise unless ``model`` is a module, some of whose parameters ``optimizer`` steps.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: the optimizer steps none of its parameters.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}; {remedy}")
    ids = owned(optimizer)
    if not any(id(parameter) in ids for parameter in model.parameters()):
        raise ValueError(
            f"optimizer: expected one that steps parameters of the model, but none of the "
            f"{len(ids)} that this {type(optimizer).__name__} holds belongs to it; "
            "make it from model.parameters() of this model, not of a copy"
        )


def overlap(a: nn.Module, b: nn.Module) -> bool:
    """Whether one of the two is, or is part of, the other."""
    return any(module is b for module in a.modules()) or any(module is a for module in b.modules())
