"""The optimizer that does the work, inside of what wraps it."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

# Where accelerate and Lightning keep the optimizer they wrap, and ZeroRedundancyOptimizer its own.
_HOLDERS = "optimizer", "optim"
_DEEPEST = 16


def unwrap(optimizer: Any) -> Optimizer:
    """The innermost optimizer, whose step does the work; wrappers may be Optimizers too.

    Raises:
        TypeError: ``optimizer`` is not and does not hold an optimizer.
    """
    inner = optimizer
    for _ in range(_DEEPEST):
        held = [getattr(inner, name) for name in _HOLDERS if getattr(inner, name, None) is not None]
        if not held:
            break
        inner = held[0]
    if not isinstance(inner, Optimizer):
        raise TypeError(
            "optimizer: expected a torch.optim.Optimizer, or an object that holds one in its "
            f"attribute 'optimizer' or 'optim', got {type(optimizer).__name__}; "
            "pass the optimizer itself"
        )
    return inner
