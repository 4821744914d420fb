"""Frozen neurons stay where they are while the optimizer steps, whichever optimizer it is.

A zero gradient does not hold a neuron still: weight decay shrinks it, momentum carries it on, and
optimizers that couple rows (Muon, LBFGS) mix it with its neighbours. :func:`protect` therefore does
not ask how an optimizer computes its step. It copies the frozen rows before the step and writes
them back after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neq_kernels.layer import NEqLayer
from neq_kernels.optim.rows import FrozenRows, check_model, overlap, owned
from neq_kernels.optim.stepping import RowOptimizer

State = Literal["hold", "reference", "keep"]
Policy = Literal["zero", "hold", "keep", "average", "leave"]

_NAMES: dict[Policy, str] = {
    "zero": "exp_avg momentum_buffer prev",
    "hold": "acc_delta col_var exp_avg_sq exp_inf grad_avg max_exp_avg_sq row_var square_avg "
    "step_size sum variance",
    "average": "ax",
    "leave": "eta mu mu_product step "
    "H_diag al d func_evals n_iter old_dirs old_stps prev_flat_grad prev_loss ro t",
}

#: What becomes of a frozen neuron's part of each state of torch's optimizers under state="hold".
#: zero: it carries motion on, so it restarts. hold: it scales steps. average: a mean of the
#: parameter. leave: one number for the whole tensor, or a mixture of all. Unknown names are held:
#: then nothing about a frozen neuron changes. (keep is what state="keep" makes of zero.)
STATE_POLICY = {name: policy for policy, names in _NAMES.items() for name in names.split()}

# Where accelerate and Lightning keep the optimizer they wrap, and ZeroRedundancyOptimizer its own.
_HOLDERS = "optimizer", "optim"

_protections: WeakKeyDictionary[Optimizer, WeakSet[Protection]] = WeakKeyDictionary()


def protect(optimizer: Any, model: nn.Module, *, state: State = "hold") -> Protection:
    """Keep the frozen neurons of ``model`` bit-identical through every ``optimizer.step()``.

    Layers and their active sets are looked up at each step, so call it before or after ``convert``,
    once; neurons may freeze and thaw at any time. It holds for any optimizer, also one that couples
    rows. Copies of the optimizer (deepcopy, pickle) are not protected: torch copies no hooks.

    Args:
        optimizer: a :class:`torch.optim.Optimizer`, or a wrapper that holds one, at any depth, in
            its attribute ``optimizer`` or ``optim`` (accelerate, Lightning, ZeRO).
        model: the model whose parameters it steps, or a part of it.
        state: what becomes of the optimizer's state of a frozen neuron.
            ``"hold"``: momentum (SGD's ``momentum_buffer``, Adam's ``exp_avg``) restarts at zero on
            thawing; second moments are held as they were when it froze.
            ``"reference"``: as the authors do (NEq, arXiv 2207.09455, and their code): momentum is
            zeroed, second moments decay as the optimizer makes them. Beware: after a long freeze
            nothing of Adam's second moment is left while its step count is high, so that bias
            correction no longer makes up for it: after t further steps with equal gradients the
            thawed neuron moves by (1 - 0.9^t) / sqrt(1 - 0.999^t) learning rates at a time, 6.6 at
            t = 12, where 1 would be right.
            ``"keep"``: all state is held, momentum too, and acts again on thawing.

    Returns:
        The :class:`Protection`; ``remove()`` ends it.

    Raises:
        TypeError: ``optimizer`` is not and does not hold an optimizer, or ``model`` is no module.
        ValueError: unknown ``state``, ``optimizer`` steps no parameter of ``model``, is protected
            for the model already, or is one of :mod:`neq_kernels.optim`, which need no protection.
    """
    inner = _unwrap(optimizer)
    check_model(inner, model, "pass protect(optimizer, model) the model that it steps")
    if state not in get_args(State):
        raise ValueError(f"state: expected 'hold', 'reference' or 'keep', got {state!r}")
    if isinstance(inner, RowOptimizer) and overlap(inner.model, model):
        raise ValueError(
            f"optimizer: expected one that moves frozen neurons, got neq_kernels.optim."
            f"{type(inner).__name__}, which leaves them alone by itself; leave protect out"
        )
    others = _protections.setdefault(inner, WeakSet())
    if any(overlap(other.model, model) for other in others):
        raise ValueError(
            "optimizer: expected one that is not protected for this model or a part of it yet, "
            "got one that is; call remove() on the Protection that protect returned first"
        )
    protection = Protection(inner, model, state)
    others.add(protection)
    return protection


class Protection:
    """What :func:`protect` returns: the hooks on one optimizer's step, until :meth:`remove`.

    Attributes:
        model: the model whose frozen neurons are protected.
        state: ``"hold"``, ``"reference"`` or ``"keep"``, see :func:`protect`.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, state: State) -> None:
        self.model = model
        self.state = state
        self._saved: list[_Saved] = []
        # Both hold what the last step met. Sets are immutable: identity says whether one changed.
        self._rows: dict[tuple[int, int], FrozenRows] = {}
        self._restarted: dict[Tensor, FrozenRows] = {}
        self._policies, self._default = _policies(state)
        self._skips_missing = type(optimizer).__module__.startswith("torch.optim.")
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        self._siblings = _protections.setdefault(optimizer, WeakSet())

    def remove(self) -> None:
        """End the protection: frozen neurons follow the optimizer again. Harmless when repeated."""
        for handle in self._handles:
            handle.remove()
        self._siblings.discard(self)

    def __repr__(self) -> str:
        return f"Protection({type(self.model).__name__}, state={self.state!r})"

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # A closure makes gradients during the step; optimizers other than torch's may move
        # parameters that have none.
        closure = any(a is not None for a in (*args[1:], *kwargs.values()))
        all_move = closure or not self._skips_missing
        self._saved.clear()
        restarted: dict[Tensor, FrozenRows] = {}
        for parameter, rows in self._frozen(optimizer):
            held = {}
            moves = all_move or parameter.grad is not None
            for name, policy, tensor in self._states(optimizer, parameter, rows):
                if policy == "zero":
                    # Once per set, not per step: without a gradient nobody writes to it again.
                    if self._restarted.get(tensor) is not rows:
                        rows.zero(tensor)
                    restarted[tensor] = rows
                elif moves:
                    held[name] = rows.read(tensor)
            if moves:
                self._saved.append(_Saved(parameter, rows, rows.read(parameter), held))
        self._restarted = restarted

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for parameter, rows, values, held in self._saved:
            rows.write(parameter, values)
            for name, policy, tensor in self._states(optimizer, parameter, rows):
                if name in held:
                    rows.write(tensor, held[name])
                elif policy in ("zero", "keep"):
                    rows.zero(tensor)
                elif policy == "average":
                    rows.write(tensor, values)
        self._saved.clear()

    def _states(
        self, optimizer: Optimizer, parameter: nn.Parameter, rows: FrozenRows
    ) -> Iterator[tuple[str, Policy, Tensor]]:
        """The states of ``parameter`` to see to: those with a slice of its own for each neuron."""
        for name, value in optimizer.state.get(parameter, {}).items():
            policy = self._policies.get(name, self._default)
            if (
                policy != "leave"
                and isinstance(value, Tensor)
                and value.is_floating_point()
                and value.dim() == parameter.dim()
                and value.size(rows.dim) == rows.active.size
            ):
                yield name, policy, value

    def _frozen(self, optimizer: Optimizer) -> list[tuple[nn.Parameter, FrozenRows]]:
        """Each parameter of ``optimizer`` that has frozen neurons now, with their rows."""
        ids = owned(optimizer)
        known, self._rows = self._rows, {}
        frozen = []
        for layer in self.model.modules():
            if not isinstance(layer, NEqLayer) or layer.active.is_full:
                continue
            active = layer.active
            for _, parameter, dim in layer.neuron_parameters():
                if id(parameter) in ids:
                    key = id(active), dim
                    rows = self._rows.get(key) or known.get(key) or FrozenRows(active, dim)
                    self._rows[key] = rows
                    frozen.append((parameter, rows))
        return frozen


class _Saved(NamedTuple):
    parameter: nn.Parameter
    rows: FrozenRows
    values: Tensor
    held: dict[str, Tensor]


def _policies(state: State) -> tuple[dict[str, Policy], Policy]:
    """STATE_POLICY as ``state`` has it, and the policy of names it does not know."""
    changed: dict[Policy, Policy] = {}
    if state == "reference":
        changed = {"hold": "leave"}
    elif state == "keep":
        changed = {"zero": "keep"}
    policies = {name: changed.get(policy, policy) for name, policy in STATE_POLICY.items()}
    return policies, changed.get("hold", "hold")


def _unwrap(optimizer: Any) -> Optimizer:
    """The innermost optimizer, whose step does the work; wrappers may be Optimizers too."""
    inner = optimizer
    for _ in range(16):
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
