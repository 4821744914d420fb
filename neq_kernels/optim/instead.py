"""Steps of torch's own SGD, Adam and AdamW over the active rows only, taken in their stead.

These optimizers step each element by itself, by a formula that :mod:`neq_kernels.optim` has too, so
frozen rows need not be copied, stepped and written back: the active ones are stepped here, and the
optimizer is not shown the gradient. Up to rounding it is the same step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from neq_kernels import backends
from neq_kernels.optim import adamw, sgd
from neq_kernels.optim.batches import Batch, Formula, Gradients, Group, Key, key_of
from neq_kernels.optim.rows import PLAIN, Rows

# Subclasses may step in another way.
_FORMULAS: dict[type[Optimizer], Formula] = {
    SGD: sgd.FORMULA,
    Adam: adamw.FORMULA,
    AdamW: adamw.FORMULA,
}
_REFUSED = "capturable", "differentiable"
# In narrower ones, rounding after every operation (foreach) is not rounding once.
_DTYPES = torch.float32, torch.float64


def formula_for(optimizer: Optimizer) -> Formula | None:
    """That of an optimizer whose steps can be taken here."""
    return _FORMULAS.get(type(optimizer))


def scales(optimizer: Optimizer) -> bool:
    """Whether GradScaler has left it to this step to divide the gradients, or to skip itself."""
    return any(getattr(optimizer, name, None) is not None for name in ("grad_scale", "found_inf"))


def available(formula: Formula) -> bool:
    """Whether the backend in use is worth it: in plain torch, rows are copied out and back, too."""
    return backends.resolve(formula.operator, "cpu", torch.float32)[0] == "native"


def options_of(formula: Formula, group: Group) -> tuple[Any, ...]:
    """What of a group's options decides whether, and from which states, it is stepped here."""
    return (*formula.state_names(group), *(bool(group.get(name)) for name in _REFUSED))


def batches_of(
    formula: Formula,
    optimizer: Optimizer,
    group: Group,
    gradients: Gradients,
    rows: dict[nn.Parameter, Rows],
) -> list[Batch]:
    """The parameters of ``group`` with frozen rows whose step can be taken here."""
    batches: dict[Key, Batch] = {}
    if any(group.get(name) for name in _REFUSED):
        return []
    names = formula.state_names(group)
    for place, (parameter, gradient) in enumerate(zip(group["params"], gradients, strict=True)):
        if parameter not in rows or not _served(formula, parameter, gradient):
            continue
        state = optimizer.state.get(parameter, {})
        states = [state.get(name) for name in names]
        # What is not there yet, the optimizer makes in a step of its own.
        if all(_plain(value) for value in states):
            key = key_of(parameter)
            batches.setdefault(key, Batch(key)).add(place, parameter, states, rows[parameter])
    return list(batches.values())


def _served(formula: Formula, parameter: Tensor, gradient: Tensor | None) -> bool:
    return (
        gradient is not None
        and gradient.layout == torch.strided
        and gradient.dtype == parameter.dtype
        and parameter.dtype in _DTYPES
        and parameter.device.type == "cpu"
        and type(parameter) in PLAIN
        and type(gradient) in PLAIN
    )


def _plain(value: Any) -> bool:
    return type(value) in PLAIN and value.device.type == "cpu"
