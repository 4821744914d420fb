"""AdamW over the active rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from neq_kernels.optim.rows import Rows
from neq_kernels.optim.stepping import (
    Batch,
    Key,
    RowOptimizer,
    State,
    as_real,
    gradient_of,
    key_of,
    number,
    operator_for,
    refuse,
)


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

    def _state_of(self, parameter: nn.Parameter, amsgrad: bool) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            # As many digits as torch.optim counts with: the default dtype, where that is double.
            double = torch.get_default_dtype() == torch.float64
            dtype = torch.float64 if double else torch.float32
            state["step"] = torch.zeros((), dtype=dtype, device="cpu")
            names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])]
            for name in names:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def _step_group(self, group: dict[str, Any], rows: dict[nn.Parameter, Rows]) -> None:
        amsgrad = group["amsgrad"]
        batches: dict[Key, tuple[Batch, list[Tensor]]] = {}
        for parameter in group["params"]:
            gradient = gradient_of(parameter)
            if gradient is None:
                continue
            state = self._state_of(parameter, amsgrad)
            tensors: tuple[Tensor, ...] = parameter, gradient, state["exp_avg"], state["exp_avg_sq"]
            if amsgrad:
                tensors = *tensors, state["max_exp_avg_sq"]
            kind = key_of(parameter)
            if kind not in batches:
                batches[kind] = Batch(len(tensors)), []
            batch, steps = batches[kind]
            batch.add(rows.get(parameter), as_real(tensors))
            steps.append(state["step"])
        beta1, beta2 = group["betas"]
        for key, (batch, steps) in batches.items():
            params, grads, exp_avgs, exp_avg_sqs, *largest = batch.tensors
            operator_for("row_adamw", key)(
                params,
                grads,
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
                amsgrad,
                group["maximize"],
            )
