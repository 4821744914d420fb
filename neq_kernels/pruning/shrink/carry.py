"""Carrying over what belongs to parameters, an optimizer's state and pruning masks: cut alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

import neq_kernels.pruning.masks as masks
from neq_kernels.optim.rows import check_model
from neq_kernels.optim.unwrap import unwrap as innermost
from neq_kernels.pruning.shrink.surgery import Cut
from neq_kernels.pruning.shrink.trace import Leaf


def unwrap(optimizer: Any, model: nn.Module) -> Optimizer:
    """The innermost optimizer, whose state it is.

    Raises:
        TypeError: there is none.
        ValueError: it steps no parameter of ``model``.
    """
    inner = innermost(optimizer)
    check_model(inner, model, "pass the optimizer that trains this model")
    return inner


def check(optimizer: Optimizer, cuts: dict[Leaf, Cut]) -> None:
    """See that all state can be cut.

    Raises:
        ValueError: some state is not made of the parameter's slices.
    """
    for leaf, cut, name, value in _states(optimizer, cuts):
        if not cut.fits(value):
            raise ValueError(
                f"optimizer: expected state in the shape of its parameter, got {name!r} of "
                f"{leaf.name} with shape {tuple(value.shape)} for {cut.shape}; leave optimizer out "
                "and make a new one after shrink"
            )


def carry(
    optimizer: Optimizer,
    cuts: dict[Leaf, Cut],
    new: list[tuple[Leaf, nn.Parameter]],
    model: nn.Module,
) -> None:
    """Cut the state, and let new biases be stepped in the group of their weight."""
    for leaf, cut, name, value in list(_states(optimizer, cuts)):
        optimizer.state[leaf.tensor][name] = cut(value)
    for leaf, bias in new:
        module = leaf.owners[0][0]
        for group in optimizer.param_groups:
            if any(p is module.weight for p in group["params"]):
                group["params"].append(bias)


class Masks:
    """The pruning masks of a model, as they are before it is cut.

    Raises:
        RuntimeError: one is of another shape than its parameter.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._masks: dict[str, Tensor] = {}
        for module in model.modules():
            masks.masked_parameters(module)
        if any(masks.is_masked(module) for module in model.modules()):
            self._masks = masks.get_masks(model)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._before = {name: (parameters[name], parameters[name].data) for name in self._masks}

    def carry(self, cuts: dict[Leaf, Cut]) -> None:
        """Put them on the parameters as they are now. A zero that has taken over what removed
        channels gave is pruned no more."""
        of = {id(leaf.tensor): cut for leaf, cut in cuts.items()}
        carried = {}
        for name, mask in self._masks.items():
            parameter, before = self._before[name]
            cut = of.get(id(parameter))
            if cut is not None:
                mask, before = cut(mask), cut(before)
            carried[name] = mask | (before != parameter.data)
        if carried:
            masks.set_masks(self._model, carried)


def _states(optimizer: Optimizer, cuts: dict[Leaf, Cut]) -> Iterator[tuple[Leaf, Cut, str, Tensor]]:
    for leaf, cut in cuts.items():
        for name, value in optimizer.state.get(leaf.tensor, {}).items():
            if isinstance(value, Tensor):
                yield leaf, cut, name, value
