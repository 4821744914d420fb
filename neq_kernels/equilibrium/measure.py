"""One pass over the probe: every layer's outputs compared with the last pass's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from neq_kernels.distributed import Peers
from neq_kernels.layer import NEqLayer
from neq_kernels.sets import to_host

from .memory import WEIGHTS, Kept, Memory, Store
from .probe import Probe
from .recorder import (
    NOT_FINITE,
    HeadFinder,
    LayerRecord,
    PairedRecord,
    finding_head,
    recording,
)  # fmt: skip
from .snapshot import Snapshot
from .undisturbed import undisturbed
from .velocity import Definition, Track

STARTS_OVER = "starts over, nothing to compare with yet"


@dataclass(frozen=True)
class LayerState:
    """What a layer carries on: its track, and the outputs the next pass compares with, if outputs
    are kept."""

    track: Track
    outputs: list[Kept]


@dataclass(frozen=True)
class Carried:
    """What one pass hands on to the next.

    Attributes:
        states: by layer; a layer without one has nothing to compare with.
        level: at which the outputs are kept, None before the first pass.
        nbytes: of what is kept.
        snapshot: the weights, at level "weights".
        digests: of the probe's batches, None before the first pass.
    """

    states: dict[str, LayerState] = field(default_factory=dict)
    level: str | None = None
    nbytes: int = 0
    snapshot: Snapshot | None = None
    digests: list[str] | None = None


@dataclass(frozen=True)
class Finding:
    """One layer after a pass.

    Attributes:
        state: what to carry on, or None if there is nothing the next pass could compare with.
        track: where the comparison with the last pass has led, or None if there was none.
        problem: why there was none, where that is unexpected.
    """

    state: LayerState | None
    track: Track | None
    problem: str | None


@dataclass(frozen=True)
class Pass:
    """What was found per layer, what is handed on, and the nn.Linear that ran last."""

    findings: dict[str, Finding]
    carried: Carried
    head: str | None


@dataclass(frozen=True)
class Measure:
    """How passes are made: over what, by which definition, and what is remembered."""

    model: nn.Module
    probe: Probe
    memory: Memory
    definition: Definition
    peers: Peers

    def run(self, layers: Mapping[str, NEqLayer], last: Carried, momentum: float) -> Pass:
        """Feed the probe and compare the outputs of `layers` with those of the pass before.

        In the first pass the probe is iterated over once more, to see that it gives the same
        batches again: better now than after an epoch of training.
        """
        first = last.digests is None
        device = next(self.model.parameters()).device
        store = Store(self.memory, device, last.level)
        records = self._records(layers, last, store)
        finder = HeadFinder()
        with self.peers.together("update()"), undisturbed(self.model, self.probe.generators()):
            runs = self._runs(records, last)
            watching = finding_head(finder, self.model) if first else nullcontext()
            with recording(records, self.model), watching:
                seen = self.probe.run(self.model, device, last.digests, runs)
            if first:
                self.probe.check_repeatable(seen)
        # A first forward may find a layer unfit and revert it.
        records = {name: r for name, r in records.items() if isinstance(layers[name], NEqLayer)}
        results = to_host([record.result() for record in records.values()])
        sums = self.peers.sum(
            [r.summary(result) for r, result in zip(records.values(), results, strict=True)]
        )
        similarities = [r.finish(s) for r, s in zip(records.values(), sums, strict=True)]
        findings = {
            name: self._finding(record, similarity, layers[name].size, last, name, momentum)
            for (name, record), similarity in zip(records.items(), similarities, strict=True)
        }
        return Pass(findings, self._carried(findings, store, seen), finder.name)

    def _records(
        self, layers: Mapping[str, NEqLayer], last: Carried, store: Store
    ) -> dict[str, LayerRecord]:
        states = last.states
        if last.level == WEIGHTS:
            return {
                name: PairedRecord(layer, name in states, self.definition.similarity(), store)
                for name, layer in layers.items()
            }
        return {
            name: LayerRecord(
                layer,
                states[name].outputs if name in states else None,
                self.definition.similarity(),
                store,
            )
            for name, layer in layers.items()
        }

    def _runs(
        self, records: Mapping[str, LayerRecord], last: Carried
    ) -> list[Callable[[], AbstractContextManager[Any]]]:
        """How each batch is run: by the model, and beside it by that of the last pass."""
        if last.snapshot is None:
            return [nullcontext]
        twin = last.snapshot.network(self.model)
        paired = [record for record in records.values() if isinstance(record, PairedRecord)]

        @contextmanager
        def then() -> Iterator[None]:
            for record in paired:
                record.side(then=True)
            with twin.in_place():
                yield
            for record in paired:
                record.side(then=False)

        return [nullcontext, then]

    def _finding(
        self,
        record: LayerRecord,
        similarity: Tensor | None,
        size: int,
        last: Carried,
        name: str,
        momentum: float,
    ) -> Finding:
        if similarity is not None:
            track = self.definition.step(last.states[name].track, similarity, momentum)
            return Finding(LayerState(track, record.outputs), track, problem=None)
        problem = record.problem or (None if last.digests is None else STARTS_OVER)
        state = LayerState(self.definition.start(size), record.outputs) if record.ran else None
        return Finding(state, None, problem)

    def _carried(self, findings: Mapping[str, Finding], store: Store, seen: list[str]) -> Carried:
        states = {name: found.state for name, found in findings.items() if found.state}
        if store.level != WEIGHTS:
            return Carried(states, store.level, store.nbytes, None, seen)
        snapshot = Snapshot.take(self.model, self.memory)
        return Carried(states, WEIGHTS, snapshot.nbytes, snapshot, seen)


def kind_of(layer: NEqLayer) -> str:
    """The torch class a converted layer stands for."""
    return layer.origin.__name__


def warn_not_finite(findings: Mapping[str, Finding]) -> None:
    """Warn of layers with NaN or inf, in the model's order; blames the caller of update()."""
    names = [name for name, found in findings.items() if found.problem == NOT_FINITE]
    if names:
        others = f" and in {len(names) - 1} more layers, {names[1]!r} next" if names[1:] else ""
        warnings.warn(
            f"{NOT_FINITE}: layer {names[0]!r}{others}. They stay active and start over; "
            "look for a diverging loss or an overflow in half precision",
            UserWarning,
            stacklevel=3,
        )
