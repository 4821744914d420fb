"""Measures which neurons have stopped learning, freezes and thaws them (NEq, arXiv 2207.09455)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from neq_kernels.active import ActiveSet
from neq_kernels.layer import NEqLayer
from neq_kernels.planner import plan
from neq_kernels.sets import sets_of

from . import checkpoint
from .exclusion import Exclusion
from .layers import Layers
from .measure import Finding, LayerState, kind_of, run_pass, warn_not_finite
from .probe import Forward, Probe
from .report import Report, row
from .selectors import Scores, Selector, Velocity, select
from .undisturbed import unwrapped
from .velocity import Track, check_momentum, get_definition


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

    The outputs of the measured layers for the whole probe are kept until the next update, and are
    part of `state_dict()`: 120 MB for ResNet-32 and 50 images of 32 x 32.

    On several processes every one measures its own replica with its own probe, and nothing is
    exchanged: give all ranks the same probe, so that they freeze the same neurons.

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

    Raises:
        TypeError: the probe, a pattern or `forward` is not what it should be.
        ValueError: no converted layer, a pattern that matches no module, or a number out of range.
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
    ) -> None:
        self.model = unwrapped(model)
        self.selector = Velocity() if selector is None else selector
        self.definition = definition
        self.momentum = check_momentum(momentum)
        self.warmup = _check_warmup(warmup)
        self._definition = get_definition(definition)
        self._probe = Probe(probe, forward)
        self._layers = Layers(self.model)
        self._exclusion = Exclusion.of(exclude, self.model, self._layers.sizes)
        self._passes = 0
        self._digests: list[str] | None = None
        self._states: dict[str, LayerState] = {}
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
            ValueError: the probe is empty, its batches are not those of the last pass, or the
                selector's masks do not fit.
            TypeError: the selector gives something else than bool masks on the CPU.
            RuntimeError: a layer is not converted any more.
        """
        started = time.perf_counter()
        self._layers.check()
        excluded = self._exclusion.names
        layers = {name: m for name, m in self._layers.live().items() if name not in excluded}
        measured = run_pass(
            self.model,
            layers,
            self._probe,
            self._states,
            self._digests,
            self._definition,
            self.momentum,
        )
        exclusion = self._exclusion
        if self._passes == 0:
            exclusion = exclusion.settled(measured.head, self._layers.sizes)
        findings = {
            name: found for name, found in measured.findings.items() if name not in exclusion.names
        }
        self._layers.activate(self._choose(findings))
        self._states = {name: found.state for name, found in findings.items() if found.state}
        self._digests, self._exclusion = measured.digests, exclusion
        self._passes += 1
        report = self._report(findings, started)
        warn_not_finite(findings)
        return report

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on bit-identically, last outputs and sets included.

        Holds tensors, plain values, lists and dicts: `torch.load(..., weights_only=True)` reads it
        back.
        """
        save = getattr(self.selector, "state_dict", None)
        patterns = self._exclusion.patterns
        return {
            "version": checkpoint.VERSION,
            "definition": self.definition,
            "momentum": self.momentum,
            "warmup": self.warmup,
            "exclude": None if patterns is None else list(patterns),
            "excluded": list(self._exclusion.names),
            "head": self._exclusion.head,
            "passes": self._passes,
            "digests": self._digests,
            "layers": self._layers.masks(),
            "states": {
                name: {"track": state.track, "outputs": state.outputs}
                for name, state in self._states.items()
            },
            "selector": {"name": type(self.selector).__name__, "state": save() if save else None},
            # With other paths a resumed run would differ in rounding.
            "plan": plan.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. As with optimizers, the saved momentum, warm-up and selector
        settings replace those of the constructor.

        Raises:
            ValueError: the state is of another model, definition, exclusion or kind of selector;
                nothing is changed.
        """
        checkpoint.check(
            state,
            definition=self.definition,
            exclude=self._exclusion.patterns,
            sizes=self._layers.sizes,
            selector=type(self.selector).__name__,
        )
        sets = {name: ActiveSet.from_mask(mask) for name, mask in state["layers"].items()}
        load = getattr(self.selector, "load_state_dict", None)
        if load and state["selector"]["state"] is not None:
            load(state["selector"]["state"])
        plan.load_state_dict(state["plan"])
        self._layers.activate(sets)
        self._states = {
            name: self._restored(name, saved) for name, saved in state["states"].items()
        }
        self.momentum, self.warmup = state["momentum"], state["warmup"]
        names, head = tuple(state["excluded"]), state["head"]
        self._exclusion = replace(self._exclusion, names=names, head=head)
        self._passes, self._digests = state["passes"], state["digests"]
        self._ended = None

    def _restored(self, name: str, saved: Mapping[str, Any]) -> LayerState:
        device = next(self.model.get_submodule(name).parameters()).device
        track = {key: value.cpu().clone() for key, value in saved["track"].items()}
        return LayerState(track, [output.to(device, copy=True) for output in saved["outputs"]])

    def _choose(self, findings: Mapping[str, Finding]) -> dict[str, ActiveSet]:
        """The sets until the next update: full in the warm-up and where nothing was compared."""
        layers = self._layers.live()
        if self._passes == 0:
            return self._first(findings)
        sets = {name: ActiveSet.full(layers[name].size) for name in findings}
        if self._passes >= self.warmup:
            scores = {
                name: self._scores(layers[name], found.track)
                for name, found in findings.items()
                if found.track
            }
            masks = select(self.selector, scores)
            sets.update(zip(masks, sets_of(list(masks.values())), strict=True))
        return sets

    def _first(self, findings: Mapping[str, Finding]) -> dict[str, ActiveSet]:
        """The sets of the first epoch: as they are, unless without warm-up the selector chooses."""
        first = getattr(self.selector, "first", None)
        if first is None or self.warmup > 0:
            return {}
        layers = self._layers.live()
        scores = {
            name: self._scores(layers[name], found.state.track)
            for name, found in findings.items()
            if found.state
        }
        chosen = first(scores)
        masks = {} if chosen is None else select(lambda scores: chosen, scores)
        return dict(zip(masks, sets_of(list(masks.values())), strict=True))

    def _scores(self, layer: NEqLayer, track: Track) -> Scores:
        return Scores(
            velocity=track["velocity"].clone(),
            similarity=track["similarity"].clone(),
            active=layer.chosen.mask(),
            parameters=sum(p.numel() for _, p, _ in layer.neuron_parameters()) // layer.size,
            kind=kind_of(layer),
            epoch=self._passes,
            inclusive=self._definition.inclusive,
        )

    def _report(self, findings: Mapping[str, Finding], started: float) -> Report:
        now, before = time.perf_counter(), self._ended
        self._ended = now
        layers = self._layers.live()
        return Report(
            epoch=self.epoch,
            layers=tuple(row(name, layers[name], found) for name, found in findings.items()),
            excluded=self._exclusion.names,
            head=self._exclusion.head,
            warming_up=0 < self.epoch < self.warmup,
            seconds=now - started,
            share=None if before is None else (now - started) / (now - before),
        )


def _check_warmup(warmup: int) -> int:
    if not isinstance(warmup, int) or isinstance(warmup, bool) or warmup < 0:
        raise ValueError(f"warmup: expected a whole number of epochs >= 0, got {warmup!r}")
    return warmup
