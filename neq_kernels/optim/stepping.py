"""What SGD and AdamW share: one operator call for all parameters of a group, active rows only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from neq_kernels import backends, reference
from neq_kernels.optim.batches import (
    Batch,
    Formula,
    Gradients,
    Key,
    Plan,
    facts_of,
    gradients_of,
    key_of,
    objects_of,
)
from neq_kernels.optim.rows import RowMap, Rows, check_model

State = Literal["hold", "keep"]


class RowOptimizer(Optimizer):
    """An optimizer of torch whose step leaves frozen neurons, and their state, alone.

    Attributes:
        model: whose layers say which neurons are active, at every step.
    """

    model: nn.Module
    formula: Formula
    momentum_name: str
    _momentum: State
    _row_map: RowMap
    _plan: Plan | None

    def _follow(self, model: nn.Module, state: State) -> None:
        check_model(self, model, f"pass {type(self).__name__}(model.parameters(), model=model)")
        if state not in get_args(State):
            remedy = (
                "; to decay second moments, as state='reference' of protect does, a step has to "
                "touch every row: use torch's own optimizer with neq_kernels.protect"
            )
            raise ValueError(f"state: expected 'hold' or 'keep', got {state!r}{remedy}")
        # GradScaler then divides the gradients itself and skips steps that overflow.
        self._step_supports_amp_scaling = False
        self._momentum = state
        self.model = model
        self._reset()

    def _reset(self) -> None:
        self._row_map = RowMap(self.model)
        self._restarted: dict[nn.Parameter, tuple[Rows, Tensor]] = {}
        self._plan: Plan | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the optimizer alone steps copies of the parameters: its model has to be theirs.
        return {**super().__getstate__(), "model": self.model, "_momentum": self._momentum}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._step_supports_amp_scaling = False
        self._reset()

    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the active neurons of all parameters that have a gradient.

        Args:
            closure: computes the loss anew and returns it.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: a gradient is sparse.
            ValueError: a hyperparameter is a tensor on a device other than the CPU.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = gradients_of(self)
        plan = self._plan_for(gradients)
        for group, batches, of_group in zip(
            self.param_groups, plan.batches, gradients, strict=True
        ):
            for batch in batches:
                self.formula.step(group, batch, batch.gradients(of_group))
        return loss

    def _plan_for(self, gradients: list[Gradients]) -> Plan:
        """The operator calls of this step: the last one's, unless something has changed."""
        facts = [
            facts_of(group["params"], of_group, self.formula.state_names(group))
            for group, of_group in zip(self.param_groups, gradients, strict=True)
        ]
        rows = self._row_map.look_up()
        if self._plan is not None and self._plan.serves(objects_of(self, rows), facts):
            return self._plan
        rows = self._row_map.look_up(anew=True)
        batches = [
            self._batches(group, of_group, rows)
            for group, of_group in zip(self.param_groups, gradients, strict=True)
        ]
        plan = Plan(batches, objects_of(self, rows), facts)
        fresh = any(batch.fresh for of_group in batches for batch in of_group)
        self._plan = None if fresh else plan
        return plan

    def _batches(
        self, group: dict[str, Any], gradients: Gradients, rows: dict[nn.Parameter, Rows]
    ) -> list[Batch]:
        names = self.formula.state_names(group)
        batches: dict[tuple[Key, bool], Batch] = {}
        for place, (parameter, gradient) in enumerate(zip(group["params"], gradients, strict=True)):
            if parameter in rows and self._momentum == "hold":
                self._restart(parameter, rows[parameter])
            if gradient is None:
                continue
            check_gradient(gradient)
            fresh = self._begin(parameter, group)
            states = [self.state[parameter][name] for name in names]
            kind = key_of(parameter), fresh
            batches.setdefault(kind, Batch(*kind)).add(
                place, parameter, states, rows.get(parameter)
            )
        return list(batches.values())

    def _restart(self, parameter: nn.Parameter, rows: Rows) -> None:
        """Momentum of frozen neurons is zero: seen to once per set and buffer."""
        buffer = self.state.get(parameter, {}).get(self.momentum_name)
        if buffer is None:
            return
        done = self._restarted.get(parameter)
        if done is None or done[0] is not rows or done[1] is not buffer:
            rows.frozen.zero(buffer)
            self._restarted[parameter] = rows, buffer

    def _begin(self, parameter: nn.Parameter, group: dict[str, Any]) -> bool:
        """Give a parameter the states that it lacks; whether its first step is another one."""
        raise NotImplementedError


def check_gradient(gradient: Tensor) -> None:
    """Raise for a sparse gradient."""
    if gradient.layout != torch.strided:
        raise RuntimeError(
            f"grad: expected a dense gradient, got layout {gradient.layout}; make the embedding "
            "with sparse=False, or give its weight to torch.optim.SparseAdam"
        )


def operator_for(name: str, key: Key) -> Callable[..., None]:
    """The function that steps parameters of this kind; tensor subclasses take plain torch."""
    device, dtype, plain = key
    if not plain:
        return getattr(reference, name)
    real = dtype.to_real() if dtype.is_complex else dtype
    return backends.resolve(name, device.type, real)[1]


def number(value: float | Tensor, name: str) -> float:
    """A hyperparameter, which may be a tensor as long as reading it does not wait for a device."""
    if isinstance(value, Tensor) and value.device.type != "cpu":
        raise ValueError(
            f"{name}: expected a number or a tensor on the CPU, got one on {value.device}, which "
            "every step would have to wait for; pass a float"
        )
    return float(value)


def refuse(**options: bool) -> None:
    """Raise for what a step by rows cannot do.

    Raises:
        ValueError: an option is set.
    """
    for name, wanted in options.items():
        if wanted:
            raise ValueError(
                f"{name}: expected False, got True; use torch's own optimizer with "
                "neq_kernels.protect"
            )
