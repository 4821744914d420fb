"""Carrying an optimizer over: its state is cut like the parameters it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

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


def _states(optimizer: Optimizer, cuts: dict[Leaf, Cut]) -> Iterator[tuple[Leaf, Cut, str, Tensor]]:
    for leaf, cut in cuts.items():
        for name, value in optimizer.state.get(leaf.tensor, {}).items():
            if isinstance(value, Tensor):
                yield leaf, cut, name, value
