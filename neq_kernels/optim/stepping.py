"""What SGD and AdamW share: one operator call for all parameters of a group, active rows only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from neq_kernels import backends, reference
from neq_kernels.optim.rows import RowMap, Rows, check_model

State = Literal["hold", "keep"]
Key = tuple[torch.device, torch.dtype, bool]

_PLAIN = nn.Parameter, Tensor


class Batch:
    """The parameters of one operator call: a list per tensor, and their active rows."""

    def __init__(self, tensors: int) -> None:
        self.tensors: list[list[Tensor]] = [[] for _ in range(tensors)]
        self.index: list[Tensor] = []
        self.count: list[int] = []
        self.dim: list[int] = []

    def add(self, rows: Rows | None, tensors: Iterable[Tensor]) -> None:
        for each, tensor in zip(self.tensors, tensors, strict=True):
            each.append(tensor)
        self.index.append(_nothing if rows is None else rows.index)
        self.count.append(-1 if rows is None else rows.count)
        self.dim.append(0 if rows is None else rows.dim)


_nothing = torch.empty(0, dtype=torch.int32, device="cpu")


class RowOptimizer(Optimizer):
    """An optimizer of torch whose step leaves frozen neurons, and their state, alone.

    Attributes:
        model: whose layers say which neurons are active, at every step.
    """

    model: nn.Module
    momentum_name: str
    _momentum: State
    _row_map: RowMap

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
        rows = self._row_map.look_up()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in rows and self._momentum == "hold":
                    self._restart(parameter, rows[parameter])
            self._step_group(group, rows)
        return loss

    def _restart(self, parameter: nn.Parameter, rows: Rows) -> None:
        """Momentum of frozen neurons is zero: seen to once per set and buffer."""
        buffer = self.state.get(parameter, {}).get(self.momentum_name)
        if buffer is None:
            return
        done = self._restarted.get(parameter)
        if done is None or done[0] is not rows or done[1] is not buffer:
            rows.frozen.zero(buffer)
            self._restarted[parameter] = rows, buffer

    def _step_group(self, group: dict[str, Any], rows: dict[nn.Parameter, Rows]) -> None:
        raise NotImplementedError


def gradient_of(parameter: nn.Parameter) -> Tensor | None:
    """The gradient, which must not be sparse."""
    gradient = parameter.grad
    if gradient is not None and gradient.layout != torch.strided:
        raise RuntimeError(
            f"grad: expected a dense gradient, got layout {gradient.layout}; make the embedding "
            "with sparse=False, or give its weight to torch.optim.SparseAdam"
        )
    return gradient


def key_of(parameter: nn.Parameter) -> Key:
    """What the parameters of one operator call have in common."""
    return parameter.device, parameter.dtype, type(parameter) in _PLAIN


def as_real(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Complex tensors as real ones with one more dimension, others as they are."""
    if tensors[0].is_complex():
        return tuple(torch.view_as_real(tensor) for tensor in tensors)
    return tensors


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
