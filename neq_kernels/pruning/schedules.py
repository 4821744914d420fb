"""When to prune: once, or a little on every plateau of the validation loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from neq_kernels.equilibrium.undisturbed import unwrapped

from .masks import apply_masks, get_masks, set_masks
from .threshold import (
    Evaluate,
    Pruned,
    check_amount,
    check_tolerance,
    evaluated,
    prune_share,
    threshold_search,
)


@dataclass(frozen=True)
class Update:
    """What a schedule did after an epoch.

    Attributes:
        epoch: how many updates there were, this one included.
        loss: what ``evaluate`` gave for the model as trained.
        best: the lowest loss since the last pruning.
        bad: epochs without a good loss, in a row.
        pruned: what was pruned now, or None.
        finished: whether the schedule is through; the model then is in its best state.
    """

    epoch: int
    loss: float
    best: float
    bad: int
    pruned: Pruned | None
    finished: bool


class _Schedule:
    """The plateau rule that both schedules share."""

    def __init__(
        self, patience: int, slack: float, exclude: str | Iterable[str], weights_only: bool
    ) -> None:
        if not isinstance(patience, int) or isinstance(patience, bool) or patience < 1:
            raise ValueError(f"patience: expected a number of epochs from 1 on, got {patience!r}")
        if not -1 < slack < math.inf:
            raise ValueError(f"slack: expected a share above -1, 0.01 say, got {slack!r}")
        self.patience = patience
        self.slack = slack
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        self.weights_only = weights_only
        self.epoch = 0
        self.best = math.inf
        self.bad = 0
        self.prunings = 0
        self.finished = False
        self._best_state: dict[str, Any] | None = None

    def update(
        self, model: nn.Module, evaluate: Evaluate, optimizer: Optimizer | None = None
    ) -> Update:
        """Look at the validation loss, and prune on a plateau; call it after every epoch.

        Args:
            model: the model in training.
            evaluate: ``evaluate(model)``, the validation loss, as in
                :func:`neq_kernels.pruning.threshold_search`.
            optimizer: whose state is reloaded with the model's best; without it, momentum stays.

        Raises:
            ValueError: the loss is NaN. RuntimeError: the schedule is finished.

        Whatever is raised, also by ``evaluate``: nothing was pruned. On a plateau the best state is
        loaded by then.
        """
        if self.finished:
            raise RuntimeError("schedule: expected one that is not finished; make a new one")
        loss = evaluated(model, evaluate)
        good = loss < self.best * (1 + self.slack)
        bad = 0 if good else self.bad + 1
        if loss < self.best:
            self._remember(model, optimizer, loss)
        pruned, finished = None, False
        if bad >= self.patience:
            self._reload(model, optimizer)
            pruned, finished = self._plateau(model, evaluate)
            bad = 0
            if pruned is not None:
                self.prunings += 1
                after = evaluated(model, evaluate) if pruned.loss is None else pruned.loss
                self._remember(model, optimizer, after)
        self.bad, self.finished = bad, finished
        self.epoch += 1
        return Update(self.epoch, loss, self.best, bad, pruned, finished)

    def step(self, model: nn.Module) -> None:
        """Keep pruned parameters zero: after each step of the optimizer, unless SeReNe or LOBSTER
        steps."""
        apply_masks(model)

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """All that a resumed run needs, what is pruned of ``model`` included; the model's and the
        optimizer's own states are saved beside it. ``torch.load(weights_only=True)`` reads it."""
        return {
            "kind": type(self).__name__,
            "epoch": self.epoch,
            "best": self.best,
            "bad": self.bad,
            "prunings": self.prunings,
            "finished": self.finished,
            "best_state": copy.deepcopy(self._best_state),
            "masks": get_masks(model),
        }

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Go on from ``state``: a schedule made with the same arguments, and ``model`` with its own
        state loaded, of which the saved masks are put into force.

        Raises:
            ValueError: the state is not one of this kind of schedule.
            KeyError, ValueError: it is of another model; nothing has changed.
        """
        kind = state.get("kind") if isinstance(state, Mapping) else None
        if kind != type(self).__name__:
            raise ValueError(
                f"state: expected what {type(self).__name__}.state_dict() returned, got {kind!r}"
            )
        set_masks(model, state["masks"])
        self.epoch, self.best, self.bad = state["epoch"], state["best"], state["bad"]
        self.prunings, self.finished = state["prunings"], state["finished"]
        self._best_state = copy.deepcopy(state["best_state"])

    def _plateau(self, model: nn.Module, evaluate: Evaluate) -> tuple[Pruned | None, bool]:
        """What was pruned, and whether that was all."""
        raise NotImplementedError

    def _remember(self, model: nn.Module, optimizer: Optimizer | None, loss: float) -> None:
        self.best = loss
        self._best_state = {
            "model": _copied(unwrapped(model).state_dict()),
            "optimizer": None if optimizer is None else copy.deepcopy(optimizer.state_dict()),
        }

    def _reload(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        if self._best_state is None:
            return
        unwrapped(model).load_state_dict(self._best_state["model"])
        if optimizer is not None and self._best_state["optimizer"] is not None:
            # As the schedule of the learning rate has it now, not as it was then.
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(copy.deepcopy(self._best_state["optimizer"]))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate


class OneShot(_Schedule):
    """Train to a plateau, prune by magnitude to the target at once, fine-tune to a plateau.

    A loss J is good if J < best * (1 + slack). After ``patience`` epochs in a row that are not, the
    best state is reloaded and the share ``amount`` of all parameters, the smallest over the whole
    network, is zeroed; after as many more, the best fine-tuned state is reloaded and the schedule
    is finished (ICANN 2020, arXiv 2004.14765).

    Args:
        amount: share of the parameters to zero, in [0, 1).
        patience: PWE, bad epochs in a row.
        slack: how far above the best a loss is still good. The paper's 0.01 calls a loss that has
            stopped moving good for ever; a negative value asks for progress.
        exclude: name patterns (``fnmatch``) of layers to leave alone.
        weights_only: leave biases and batch norms alone.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        amount: float,
        *,
        patience: int = 20,
        slack: float = 0.01,
        exclude: str | Iterable[str] = (),
        weights_only: bool = False,
    ) -> None:
        check_amount(amount)
        super().__init__(patience, slack, exclude, weights_only)
        self.amount = amount

    def _plateau(self, model: nn.Module, evaluate: Evaluate) -> tuple[Pruned | None, bool]:
        if self.prunings:
            return None, True
        pruned = prune_share(
            model, self.amount, exclude=self.exclude, weights_only=self.weights_only
        )
        return pruned, False


class Gradual(_Schedule):
    """Prune a little on every plateau, as far as the loss allows, and train on.

    A loss J is good if J < best * (1 + slack). After ``patience`` epochs in a row that are not, the
    best state is reloaded, and :func:`neq_kernels.pruning.threshold_search` zeroes what the loss
    can do without (LOBSTER, arXiv 2011.09905). The best then starts at the pruned model's loss. The
    schedule is finished when a plateau finds nothing more to prune, or ``amount`` is reached.
    Together with SeReNe or LOBSTER this is their method; alone, gradual pruning by magnitude.

    Args:
        tolerance: TWT, the share by which a pruning may raise the loss, 0.05 in the paper.
        amount: stop when this share of the parameters is zero, in [0, 1); None: never.
        patience, slack, exclude, weights_only: as in :class:`OneShot`. SeReNe shrinks weights only.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        tolerance: float = 0.05,
        *,
        amount: float | None = None,
        patience: int = 20,
        slack: float = 0.01,
        exclude: str | Iterable[str] = (),
        weights_only: bool = False,
    ) -> None:
        check_tolerance(tolerance)
        if amount is not None:
            check_amount(amount)
        super().__init__(patience, slack, exclude, weights_only)
        self.tolerance = tolerance
        self.amount = amount
        self._zeroed = -1.0

    def _plateau(self, model: nn.Module, evaluate: Evaluate) -> tuple[Pruned | None, bool]:
        pruned = threshold_search(
            model,
            evaluate,
            self.tolerance,
            exclude=self.exclude,
            weights_only=self.weights_only,
        )
        nothing_more = pruned.zeroed <= self._zeroed
        self._zeroed = pruned.zeroed
        enough = self.amount is not None and pruned.zeroed >= self.amount
        return pruned, nothing_more or enough

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """As :meth:`OneShot.state_dict`."""
        return {**super().state_dict(model), "zeroed": self._zeroed}

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """As :meth:`OneShot.load_state_dict`."""
        super().load_state_dict(state, model)
        self._zeroed = state["zeroed"]


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in state.items()
    }
