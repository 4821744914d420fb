"""SGD over the active rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from neq_kernels.optim.batches import Batch, Formula, Group
from neq_kernels.optim.stepping import RowOptimizer, State, number, operator_for, refuse


def state_names(group: Group) -> tuple[str, ...]:
    """The states that a step of this group reads."""
    return ("momentum_buffer",) if group["momentum"] != 0 else ()


def step(group: Group, batch: Batch, gradients: list[Tensor]) -> None:
    """Step the active rows of ``batch`` with the options of its ``group``."""
    operator_for(FORMULA.operator, batch.key)(
        batch.real(batch.params),
        batch.real(gradients),
        batch.real(batch.states[0]) if batch.states else [],
        batch.index,
        batch.count,
        batch.dim,
        number(group["lr"], "lr"),
        float(group["momentum"]),
        0.0 if batch.fresh else float(group["dampening"]),
        number(group["weight_decay"], "weight_decay"),
        group["nesterov"],
        group["maximize"],
    )


FORMULA = Formula("row_sgd", state_names, step)


class SGD(RowOptimizer, torch.optim.SGD):
    """:class:`torch.optim.SGD` that reads and writes the rows of active neurons only.

    It holds frozen neurons bit-identical by itself: leave :func:`neq_kernels.protect` out. Layers
    and their active sets are looked up at each step; parameters of other layers are stepped whole.
    Steps, ``state_dict`` and defaults are those of ``torch.optim.SGD``, and checkpoints load in
    either from the other.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize: as in
            ``torch.optim.SGD``; a tensor among them must be on the CPU.
        foreach, fused: kept for the ``state_dict``; there is one implementation.
        differentiable: must be False.
        model: the model whose parameters it steps, or a part of it, converted or not yet.
        state: ``"hold"``: momentum restarts at zero on thawing; ``"keep"``: it is held and acts
            again on thawing.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: it steps no parameter of ``model``, an option is out of range or not supported.
    """

    formula = FORMULA
    momentum_name = "momentum_buffer"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        model: nn.Module,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        state: State = "hold",
    ) -> None:
        refuse(differentiable=differentiable)
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            fused=fused,
        )
        self._follow(model, state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group["differentiable"] = False

    def _begin(self, parameter: nn.Parameter, group: dict[str, Any]) -> bool:
        if group["momentum"] == 0 or self.state[parameter].get("momentum_buffer") is not None:
            return False
        # The first gradient is not dampened: the buffer, zero so far, becomes it.
        buffer = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        self.state[parameter]["momentum_buffer"] = buffer
        return bool(group["dampening"] != 0)
