"""Choosing neurons every so many steps, without a probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neq_kernels.active import ActiveSet
from neq_kernels.distributed import WORLD, Peers
from neq_kernels.layer import NEqLayer
from neq_kernels.sets import sets_of, to_host

from . import checkpoint
from .exclusion import Exclusion
from .layers import Layers
from .measure import kind_of
from .selectors import Scores, Selector, needs, select
from .undisturbed import unwrapped

KEYS = {"steps", "every", "excluded", "layers", "selector"}


class Schedule:
    """Chooses the neurons of a converted model that train, every `every` steps: for fine-tuning of
    one to three epochs, too few to find an equilibrium.

        schedule = neq.Schedule(model, neq.selectors.GradientNorm(share=0.25), every=100)
        for x, y in loader:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
            schedule.step()

    The first step trains all. After it, and after every `every` more, the selector chooses. One
    that needs gradients (`GradientNorm`, `Sampled(by="gradient")`) is shown those of one step with
    all neurons active, so that one in `every` steps is a dense one: frozen neurons have none. On
    several processes their squares are added up, and rank 0's choice is everybody's.

    Args:
        model: converted by `neq_kernels.convert`; may be compiled or wrapped in
            DistributedDataParallel.
        selector: who trains until the next choice; see `neq_kernels.selectors`. Not one that needs
            velocities: those are measured by `Equilibrium`.
        every: steps from one choice to the next, at least 2.
        exclude: name patterns (fnmatch) of converted layers that are left alone. By default the
            nn.Linear that was registered last; `exclude=()` leaves out none.
        process_group: as for `Equilibrium`.

    Raises:
        TypeError: a selector that cannot be called, or a pattern that is not a string.
        ValueError: no converted layer, a pattern that matches none, `every` below 2, or a selector
            that needs velocities.
    """

    def __init__(
        self,
        model: nn.Module,
        selector: Selector,
        *,
        every: int = 100,
        exclude: str | Sequence[str] | None = None,
        process_group: Any = WORLD,
    ) -> None:
        if not callable(selector):
            raise TypeError(f"selector: expected a callable, got {type(selector).__name__}")
        if needs(selector) == "velocity":
            raise ValueError(
                f"selector: expected one that needs no velocities, got {selector!r}; use it in "
                "neq.Equilibrium(model, probe, selector=...), which measures them"
            )
        if not isinstance(every, int) or isinstance(every, bool) or every < 2:
            raise ValueError(f"every: expected a whole number of steps >= 2, got {every!r}")
        self.model = unwrapped(model)
        self.selector, self.every = selector, every
        self._layers = Layers(self.model)
        self._peers = Peers(process_group)
        linears = [name for name, m in self.model.named_modules() if isinstance(m, nn.Linear)]
        exclusion = Exclusion.of(exclude, self.model, self._layers.sizes)
        exclusion = exclusion.settled(linears[-1] if linears else None, self._layers.sizes)
        self._excluded = exclusion.names
        self._steps = 0

    def step(self) -> bool:
        """Count a step, after the optimizer's; choose, or make all active for the one to be looked
        at, where it is time. Gradients must still be there.

        Returns:
            Whether neurons were chosen.

        Raises:
            RuntimeError: a layer is not converted any more, there are no gradients to choose by, or
                the choice failed on another rank.
            TypeError, ValueError: the selector's masks do not fit.
        """
        due, looks = self._steps % self.every == 0, needs(self.selector) == "gradient"
        if due:
            with self._peers.together("step()"):
                self._layers.check()
                summed = self._squares() if looks else None
            scores = self._scores(self._norms(summed))
            with self._peers.together("step()"):
                masks = select(self.selector, scores)
                sets = dict(zip(masks, sets_of(list(masks.values())), strict=True))
            self._layers.activate(self._peers.first(sets))
        elif looks and (self._steps + 1) % self.every == 0:
            self._layers.activate({n: ActiveSet.full(m.size) for n, m in self._chosen().items()})
        self._steps += 1
        return due

    def _chosen(self) -> dict[str, NEqLayer]:
        return {n: m for n, m in self._layers.live().items() if n not in self._excluded}

    @torch.no_grad()
    def _squares(self) -> list[Tensor]:
        """Per layer the squared norm of every neuron's gradient, fp64 `[C]` on the CPU; NaN where
        there is none."""
        found = [_squared(layer) for layer in self._chosen().values()]
        if all(squares is None for squares in found):
            raise RuntimeError(
                "step(): expected gradients in the model's parameters, got none; call it after "
                "backward() and optimizer.step(), and before zero_grad()"
            )
        sizes = [layer.size for layer in self._chosen().values()]
        return to_host(
            [
                torch.full((size,), torch.nan, dtype=torch.float64, device="cpu")
                if squares is None
                else squares
                for squares, size in zip(found, sizes, strict=True)
            ]
        )

    def _norms(self, squares: list[Tensor] | None) -> dict[str, Tensor]:
        if squares is None:
            return {}
        return {
            name: summed.sqrt()
            for name, summed in zip(self._chosen(), self._peers.sum(squares), strict=True)
        }

    def _scores(self, norms: Mapping[str, Tensor]) -> dict[str, Scores]:
        return {
            name: Scores(
                velocity=torch.full((layer.size,), torch.nan, dtype=torch.float64),
                similarity=torch.full((layer.size,), torch.nan, dtype=torch.float64),
                active=layer.active.mask(),
                parameters=sum(p.numel() for _, p, _ in layer.neuron_parameters()) // layer.size,
                kind=kind_of(layer),
                epoch=self._steps // self.every + 1,
                gradient=norms.get(name),
            )
            for name, layer in self._chosen().items()
        }

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, sets included; tensors and plain values."""
        return {
            "steps": self._steps,
            "every": self.every,
            "excluded": list(self._excluded),
            "layers": self._layers.masks(),
            "selector": checkpoint.selector_state(self.selector),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, also with its `every`.

        Raises:
            ValueError: the state is of another model or exclusion, or of a selector of another
                class or with other settings; nothing is changed.
        """
        if not isinstance(state, Mapping) or not set(state) >= KEYS:
            raise ValueError("state: expected what Schedule.state_dict() of this version returned")
        mine = {
            "layers": self._layers.sizes,
            "excluded": list(self._excluded),
        }
        theirs = {
            "layers": {name: mask.numel() for name, mask in state["layers"].items()},
            "excluded": state["excluded"],
        }
        for what, ours in mine.items():
            if ours != theirs[what]:
                raise ValueError(
                    f"state: expected {what} {ours} as in this schedule, got {theirs[what]}; make "
                    "the schedule of the saved run's model, with its arguments"
                )
        checkpoint.same_selector(self.selector, state["selector"])
        sets = {name: ActiveSet.from_mask(mask) for name, mask in state["layers"].items()}
        load = getattr(self.selector, "load_state_dict", None)
        if load and state["selector"]["state"] is not None:
            load(state["selector"]["state"])
        self._layers.activate(sets)
        self._steps, self.every = state["steps"], state["every"]


def _squared(layer: NEqLayer) -> Tensor | None:
    total: Tensor | None = None
    for _, parameter, axis in layer.neuron_parameters():
        if parameter.grad is not None:
            rows = parameter.grad.movedim(axis, 0).reshape(layer.size, -1)
            squares = rows.double().square().sum(1)
            total = squares if total is None else total + squares
    return total
