"""AdamW over the active rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from neq_kernels.optim.batches import Batch, Formula, Group
from neq_kernels.optim.stepping import RowOptimizer, State, number, operator_for, refuse


def state_names(group: Group) -> tuple[str, ...]:
    """The states that a step of this group reads."""
    largest = ("max_exp_avg_sq",) if group["amsgrad"] else ()
    return "step", "exp_avg", "exp_avg_sq", *largest


def step(group: Group, batch: Batch, gradients: list[Tensor]) -> None:
    """Step the active rows of ``batch`` with the options of its ``group``."""
    steps, exp_avgs, exp_avg_sqs, *largest = map(batch.real, batch.states)
    beta1, beta2 = group["betas"]
    operator_for(FORMULA.operator, batch.key)(
        batch.real(batch.params),
        batch.real(gradients),
        exp_avgs,
        exp_avg_sqs,
        largest[0] if largest else [],
        steps,
        batch.index,
        batch.count,
        batch.dim,
        number(group["lr"], "lr"),
        number(beta1, "betas"),
        number(beta2, "betas"),
        group["eps"],
        group["weight_decay"],
        group["decoupled_weight_decay"],
        group["amsgrad"],
        group["maximize"],
    )


FORMULA = Formula("row_adamw", state_names, step)


class AdamW(RowOptimizer, torch.optim.AdamW):
    """:class:`torch.optim.AdamW` that reads and writes the rows of active neurons only.

    It holds frozen neurons bit-identical by itself: leave :func:`neq_kernels.protect` out. Layers
    and their active sets are looked up at each step; parameters of other layers are stepped whole.
    Second moments of frozen neurons stay as they were. Steps, ``state_dict`` and defaults are those
    of ``torch.optim.AdamW``, and checkpoints load in either from the other.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize: as in ``torch.optim.AdamW``; a
            tensor among them must be on the CPU.
        foreach, fused: kept for the ``state_dict``; there is one implementation.
        capturable, differentiable: must be False, and are set so when a checkpoint is loaded.
        model: the model whose parameters it steps, or a part of it, converted or not yet.
        state: ``"hold"``: ``exp_avg`` restarts at zero on thawing; ``"keep"``: it is held and acts
            again on thawing.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: it steps no parameter of ``model``, an option is out of range or not supported.
    """

    formula = FORMULA
    momentum_name = "exp_avg"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        model: nn.Module,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state: State = "hold",
    ) -> None:
        refuse(capturable=capturable, differentiable=differentiable)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            fused=fused,
        )
        self._follow(model, state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group["capturable"] = group["differentiable"] = False
        # Fused and capturable optimizers count on the device, which a step must not wait for.
        for each in self.state.values():
            if isinstance(each.get("step"), Tensor):
                each["step"] = each["step"].cpu()

    def _begin(self, parameter: nn.Parameter, group: dict[str, Any]) -> bool:
        state = self.state[parameter]
        if not state:
            # As many digits as torch.optim counts with: the default dtype, where that is double.
            double = torch.get_default_dtype() == torch.float64
            dtype = torch.float64 if double else torch.float32
            state["step"] = torch.zeros((), dtype=dtype, device="cpu")
            for name in state_names(group)[1:]:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return False
