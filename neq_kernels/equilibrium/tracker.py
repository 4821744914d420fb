"""Measures which neurons have stopped learning, freezes and thaws them (NEq, arXiv 2207.09455)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from neq_kernels.active import ActiveSet
from neq_kernels.distributed import WORLD, Peers
from neq_kernels.planner import plan

from . import checkpoint
from .choice import Choice, check_warmup
from .exclusion import Exclusion
from .history import History
from .layers import Layers
from .measure import Carried, Finding, Measure, warn_not_finite
from .memory import Memory, megabytes, memory_of
from .probe import Forward, Probe
from .report import Report, row
from .selectors import Selector, Velocity, needs
from .timing import Timing
from .undisturbed import unwrapped
from .velocity import check_momentum, get_definition


class Equilibrium:
    """Freezes the neurons of a converted model that have stopped changing, and thaws those that
    move again.

    Call `update()` once before training and then after every epoch. Each runs the probe through the
    model, in eval mode and without gradient, compares every neuron's output before the activation
    with that of the last pass, and sets the layers' active sets:

        phi_t = cos(y_t, y_{t-1}),   v_t = phi_t - phi_{t-1} - momentum * v_{t-1},
        frozen iff |v_t| < epsilon,  phi_0 = 1, v_0 = 0

    (NEq, NeurIPS 2022, arXiv 2207.09455, section 3). The channel of a convolution and the channel
    of the batch norm behind it are two neurons. A layer that cannot be compared (it did not run,
    its output shape varies, NaN or inf in its outputs) is all active, with its reason in the
    report, and starts over.

    Between updates it remembers the outputs of the measured layers for the whole probe, 120 MB for
    ResNet-32 and 50 images of 32 x 32, or the weights; `memory` says which. They are part of
    `state_dict()`. `history` has what every update found.

    On several processes all of them call `update()`, each with its own part of the probe or all
    with the same: the sums that similarities come from are added up over `process_group`, and the
    first rank's choice is everybody's. An error on one rank is an error on all.

    Args:
        model: converted by `neq_kernels.convert`; may be compiled or wrapped in
            DistributedDataParallel.
        probe: batches that are the same at every pass, such as an unshuffled DataLoader or a list.
            Of a tuple or list the first item goes to the model, a mapping goes as keywords; tensors
            are moved to the model's device. The first update iterates over it twice, to refuse one
            that shuffles before any training.
        selector: which neurons train until the next update; see `neq_kernels.selectors`.
        momentum: mu in [0, 1); the paper's bound, and choice, is 0.5.
        definition: which published definition of equilibrium: "paper", its text, or "reference",
            the code behind its tables; neq_kernels/equilibrium/velocity.py has both side by side.
        warmup: epochs that train every neuron before the first may freeze. The first epoch always
            does, as nothing can be compared before it, unless warmup=0 and the selector chooses
            without: `Fixed`, `ParameterBudget(first="random")`.
        exclude: name patterns (fnmatch) of converted layers that are neither measured nor touched.
            By default the nn.Linear that runs last in the probe: the classifier's head.
            `exclude=()` measures all.
        forward: `forward(model, batch)` feeds a batch that needs more than the rules above; it gets
            the model without wrappers, and the whole batch.
        memory: "auto" (outputs within 2 GiB on the device or 8 GiB on the host, else weights),
            "outputs", "weights", or a `neq_kernels.equilibrium.Memory` with other budgets.
        process_group: who measures together: all processes if torch.distributed is initialised
            ("world"), those of a group, or nobody else (None).

    A selector that predicts the backward's time, such as `TimeBudget`, is told what it took: that
    of steps in train mode, from the gradient's arrival at the model's outputs to the end, or what
    `log(backward_ms=...)` says.

    Attributes:
        history: a `neq_kernels.equilibrium.History`: per update, what was found and chosen.

    Raises:
        TypeError: the probe, a pattern or `forward` is not what it should be.
        ValueError: no converted layer, a pattern that matches no module, a number out of range, or
            a selector that needs gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Iterable[Any],
        *,
        selector: Selector | None = None,
        momentum: float = 0.5,
        definition: str = "paper",
        warmup: int = 1,
        exclude: str | Sequence[str] | None = None,
        forward: Forward | None = None,
        memory: str | Memory = "auto",
        process_group: Any = WORLD,
    ) -> None:
        self.model = unwrapped(model)
        self.selector = Velocity() if selector is None else selector
        if needs(self.selector) == "gradient":
            raise ValueError(
                f"selector: expected one that needs no gradients, got {selector!r}; use it in "
                "neq.Schedule(model, selector), which has them"
            )
        self.definition = definition
        self.momentum = check_momentum(momentum)
        self.warmup = check_warmup(warmup)
        self._definition = get_definition(definition)
        self._peers = Peers(process_group)
        self._measure = Measure(
            self.model, Probe(probe, forward), memory_of(memory), self._definition, self._peers
        )
        self._layers = Layers(self.model)
        self._exclusion = Exclusion.of(exclude, self.model, self._layers.sizes)
        self._passes = 0
        self._timing = Timing(model, self.selector, self._peers)
        self._carried = Carried()
        self.history = History()
        self._ended: float | None = None

    @property
    def epoch(self) -> int:
        """How many updates have compared: t of the last one, 0 before training."""
        return max(0, self._passes - 1)

    def update(self) -> Report:
        """Measure, then freeze and thaw. The model is otherwise as before, also when this raises.

        Returns:
            What was found, per layer; prints as a table.

        Raises:
            ValueError: the probe is empty, its batches are not those of the last pass, they do not
                fit the memory, the selector's masks do not fit, or ranks have other trackers.
            TypeError: the selector gives something else than bool masks on the CPU.
            RuntimeError: a layer is not converted any more, or update() failed on another rank.
        """
        started = time.perf_counter()
        with self._peers.together("update()"):
            self._layers.check()
        self._peers.alike(
            (self._passes, self.definition, self.momentum, sorted(self._layers.sizes.items()))
        )
        excluded = self._exclusion.names
        layers = {name: m for name, m in self._layers.live().items() if name not in excluded}
        measured = self._measure.run(layers, self._carried, self.momentum)
        timed = self._timing.ended(self.history)
        exclusion = self._exclusion
        with self._peers.together("update()"):
            if self._passes == 0:
                exclusion = exclusion.settled(measured.head, self._layers.sizes)
            findings = {n: f for n, f in measured.findings.items() if n not in exclusion.names}
            sets = self._choice().sets(self.selector, findings)
        self._layers.activate(self._peers.first(sets))
        states = {name: found.state for name, found in findings.items() if found.state}
        self._carried, self._exclusion = replace(measured.carried, states=states), exclusion
        self._passes += 1
        report = self._record(findings, started, timed)
        warn_not_finite(findings)
        return report

    def log(self, **values: float) -> None:
        """Note numbers of the epoch beside the last update, such as ``accuracy`` and
        ``backward_ms``, for `history` and its picture."""
        self.history.log(**values)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on bit-identically, last outputs and sets included.

        Holds tensors, plain values, lists and dicts: `torch.load(..., weights_only=True)` reads it
        back.
        """
        return {
            "version": checkpoint.VERSION,
            "definition": self.definition,
            "momentum": self.momentum,
            "warmup": self.warmup,
            **self._exclusion.state_dict(),
            "passes": self._passes,
            "layers": self._layers.masks(),
            **checkpoint.saved(self._carried),
            "history": self.history.state_dict(),
            "selector": checkpoint.selector_state(self.selector),
            # With other paths a resumed run would differ in rounding.
            "plan": plan.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. As with optimizers, the saved momentum and warm-up replace those of
        the constructor.

        Raises:
            ValueError: the state is of another model, definition or exclusion, or of a selector of
                another class or with other settings; nothing is changed.
        """
        checkpoint.check(
            state,
            model=self.model,
            definition=self.definition,
            exclude=self._exclusion.patterns,
            sizes=self._layers.sizes,
            selector=self.selector,
        )
        sets = {name: ActiveSet.from_mask(mask) for name, mask in state["layers"].items()}
        load = getattr(self.selector, "load_state_dict", None)
        if load and state["selector"]["state"] is not None:
            load(state["selector"]["state"])
        plan.load_state_dict(state["plan"])
        self._layers.activate(sets)
        self._carried = checkpoint.restored(state, self.model)
        self.history.load_state_dict(state["history"])
        self.momentum, self.warmup = state["momentum"], state["warmup"]
        names, head = tuple(state["excluded"]), state["head"]
        self._exclusion = replace(self._exclusion, names=names, head=head)
        self._passes = state["passes"]
        self._ended = None

    def _choice(self) -> Choice:
        inclusive = self._definition.inclusive
        return Choice(self._layers.live(), self._passes, self.warmup, inclusive)

    def _record(self, findings: Mapping[str, Finding], started: float, timed: str) -> Report:
        now, before = time.perf_counter(), self._ended
        self._ended = now
        layers = self._layers.live()
        report = Report(
            epoch=self.epoch,
            layers=tuple(row(name, layers[name], found) for name, found in findings.items()),
            excluded=self._exclusion.names,
            head=self._exclusion.head,
            warming_up=0 < self.epoch < self.warmup,
            seconds=now - started,
            share=None if before is None else (now - started) / (now - before),
            remembered=f"{self._carried.level}, {megabytes(self._carried.nbytes)}",
        )
        sets = {name: layer.active for name, layer in layers.items()}
        velocities = [found.track["velocity"] for found in findings.values() if found.track]
        self.history.add(report, sets, velocities, getattr(self.selector, "epsilon", None))
        lines = [line for line in (timed, self._timing.chosen(self.history)) if line]
        return replace(report, note="\n".join(lines))
