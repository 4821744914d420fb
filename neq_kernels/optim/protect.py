"""Frozen neurons stay where they are while the optimizer steps, whichever optimizer it is.

A zero gradient does not hold a neuron still: weight decay shrinks it, momentum carries it on, and
optimizers that couple rows (Muon, LBFGS) mix it with its neighbours. :func:`protect` therefore does
not ask how an optimizer computes its step. It copies the frozen rows before the step and writes
them back after it. Where it does know the formula, and can step the active rows alone, it saves
itself the copies (:mod:`neq_kernels.optim.instead`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from neq_kernels.optim import instead
from neq_kernels.optim.batches import (
    Batch,
    Formula,
    Gradients,
    Plan,
    facts_of,
    gradients_of,
    objects_of,
)
from neq_kernels.optim.rows import FrozenRows, RowMap, Rows, check_model, overlap
from neq_kernels.optim.stepping import RowOptimizer
from neq_kernels.optim.unwrap import unwrap

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
    inner = unwrap(optimizer)
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
        self._row_map = RowMap(model)
        self._plan: _Plan | None = None
        # The copies of one step are what the next one's are written over.
        self._copies: dict[nn.Parameter, _Copies] = {}
        self._taken: list[tuple[Tensor, Tensor]] = []
        # Sets are immutable: identity says whether one changed.
        self._restarted: dict[Tensor, FrozenRows] = {}
        self._policies, self._default = _policies(state)
        self._skips_missing = type(optimizer).__module__.startswith("torch.optim.")
        self._formula = instead.formula_for(optimizer)
        # Momentum needs no decaying where it is zero; second moments do.
        if state == "reference" and not isinstance(optimizer, torch.optim.SGD):
            self._formula = None
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        self._siblings = _protections.setdefault(optimizer, WeakSet())

    def remove(self) -> None:
        """End the protection: frozen neurons follow the optimizer again. Harmless when repeated."""
        for handle in self._handles:
            handle.remove()
        self._copies.clear()
        self._plan = None
        self._siblings.discard(self)

    def __repr__(self) -> str:
        return f"Protection({type(self.model).__name__}, state={self.state!r})"

    @_disable_dynamo
    @torch.no_grad()
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # A closure makes gradients during the step.
        closure = any(a is not None for a in (*args[1:], *kwargs.values()))
        gradients = gradients_of(optimizer)
        plan = self._plan_for(optimizer, gradients, closure)
        self._taken.clear()
        for group, batches, of_group in zip(
            optimizer.param_groups, plan.batches, gradients, strict=True
        ):
            for batch in batches:
                taken = batch.gradients(of_group)
                plan.formula.step(group, batch, taken)
                self._taken += zip(batch.params, taken, strict=True)
        # What has no gradient, the optimizer passes over.
        for parameter, _ in self._taken:
            parameter.grad = None
        copies = {}
        for parameter, rows in plan.copied:
            tensors = {
                name: tensor
                for name, policy, tensor in self._states(optimizer, parameter, rows)
                if policy != "zero"
            }
            old = self._copies.get(parameter)
            copies[parameter] = _Copies(rows, parameter, tensors, old)
        self._copies = copies

    @_disable_dynamo
    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for parameter, gradient in self._taken:
            parameter.grad = gradient
        self._taken.clear()
        for parameter, copies in self._copies.items():
            rows = copies.rows
            rows.write(parameter, copies.values)
            for name, policy, tensor in self._states(optimizer, parameter, rows):
                if name in copies.held:
                    rows.write(tensor, copies.held[name])
                elif policy in ("zero", "keep"):
                    rows.zero(tensor)
                elif policy == "average":
                    rows.write(tensor, copies.values)

    def _plan_for(self, optimizer: Optimizer, gradients: list[Gradients], closure: bool) -> _Plan:
        """What this step needs: the same as the last one, unless something has changed."""
        formula = self._formula
        if closure or instead.scales(optimizer) or (formula and not instead.available(formula)):
            formula = None
        # Optimizers other than torch's may move parameters that have no gradient.
        all_move = closure or not self._skips_missing
        facts: list[Any] = [formula, all_move]
        for group, of_group in zip(optimizer.param_groups, gradients, strict=True):
            options = instead.options_of(formula, group) if formula else ()
            facts.append(facts_of(group["params"], of_group, options))
        rows = self._row_map.look_up()
        if self._plan is None or not self._plan.serves(objects_of(optimizer, rows), facts):
            rows = self._row_map.look_up(anew=True)
            self._restart(optimizer, rows)
            self._plan = _Plan(optimizer, gradients, rows, facts)
        return self._plan

    def _restart(self, optimizer: Optimizer, rows: dict[nn.Parameter, Rows]) -> None:
        """Momentum of frozen neurons is zero: seen to once per set and tensor, not per step."""
        restarted: dict[Tensor, FrozenRows] = {}
        for group in optimizer.param_groups:
            for parameter in filter(rows.__contains__, group["params"]):
                frozen = rows[parameter].frozen
                for _, policy, tensor in self._states(optimizer, parameter, frozen):
                    if policy == "zero":
                        if self._restarted.get(tensor) is not frozen:
                            frozen.zero(tensor)
                        restarted[tensor] = frozen
        self._restarted = restarted

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


class _Plan(Plan):
    """What a step needs: the batches to step instead of the optimizer, the parameters to copy."""

    def __init__(
        self,
        optimizer: Optimizer,
        gradients: list[Gradients],
        rows: dict[nn.Parameter, Rows],
        facts: list[Any],
    ) -> None:
        formula, all_move = facts[:2]
        self.formula: Formula = formula
        self.copied: list[tuple[nn.Parameter, FrozenRows]] = []
        batches: list[list[Batch]] = []
        for group, of_group in zip(optimizer.param_groups, gradients, strict=True):
            found = instead.batches_of(formula, optimizer, group, of_group, rows) if formula else []
            batches.append(found)
            stepped = {place for batch in found for place in batch.places}
            self.copied += [
                (parameter, rows[parameter].frozen)
                for place, parameter in enumerate(group["params"])
                if parameter in rows and place not in stepped
                if all_move or of_group[place] is not None
            ]
        super().__init__(batches, objects_of(optimizer, rows), facts)


class _Copies:
    """The frozen rows of a parameter and of its states, written over those of an earlier step."""

    def __init__(
        self, rows: FrozenRows, parameter: Tensor, states: dict[str, Tensor], old: _Copies | None
    ) -> None:
        held = old.held if old else {}
        self.rows = rows
        self.values: Tensor = rows.read(parameter, old.values if old else None)
        self.held: dict[str, Tensor] = {
            name: rows.read(tensor, held.get(name)) for name, tensor in states.items()
        }


def _policies(state: State) -> tuple[dict[str, Policy], Policy]:
    """STATE_POLICY as ``state`` has it, and the policy of names it does not know."""
    changed: dict[Policy, Policy] = {}
    if state == "reference":
        changed = {"hold": "leave"}
    elif state == "keep":
        changed = {"zero": "keep"}
    policies = {name: changed.get(policy, policy) for name, policy in STATE_POLICY.items()}
    return policies, changed.get("hold", "hold")
