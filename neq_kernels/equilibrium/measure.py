"""One pass over the probe: every layer's outputs compared with the last pass's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from neq_kernels.layer import NEqLayer
from neq_kernels.sets import to_host

from .probe import Probe
from .recorder import NOT_FINITE, HeadFinder, LayerRecord, finding_head, recording
from .undisturbed import undisturbed
from .velocity import Definition, Track

STARTS_OVER = "starts over, nothing to compare with yet"


@dataclass(frozen=True)
class LayerState:
    """What a layer carries on: its track, and the outputs the next pass compares with."""

    track: Track
    outputs: list[Tensor]


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
    """What was found per layer, a digest per batch, and the nn.Linear that ran last."""

    findings: dict[str, Finding]
    digests: list[str]
    head: str | None


def run_pass(
    model: nn.Module,
    layers: Mapping[str, NEqLayer],
    probe: Probe,
    last: Mapping[str, LayerState],
    digests: list[str] | None,
    definition: Definition,
    momentum: float,
) -> Pass:
    """Feed the probe and compare the outputs of `layers` with `last`.

    `digests` are those of the last pass, or None in the first, in which the probe is iterated over
    once more to see that it gives the same batches again: better now than after an epoch of
    training.
    """
    records = {
        name: LayerRecord(
            layer, last[name].outputs if name in last else None, definition.similarity()
        )
        for name, layer in layers.items()
    }
    finder, first = HeadFinder(), digests is None
    device = next(model.parameters()).device
    with undisturbed(model, probe.generators()):
        with recording(records, model), finding_head(finder, model) if first else nullcontext():
            seen = probe.run(model, device, digests)
        if first:
            probe.check_repeatable(seen)
    # A first forward may find a layer unfit and revert it.
    records = {name: r for name, r in records.items() if isinstance(layers[name], NEqLayer)}
    results = to_host([record.result() for record in records.values()])
    findings = {
        name: _finding(
            record, record.finish(result), layers[name].size, last.get(name), first, definition,
            momentum,
        )
        for (name, record), result in zip(records.items(), results, strict=True)
    }  # fmt: skip
    return Pass(findings, seen, finder.name)


def _finding(
    record: LayerRecord,
    similarity: Tensor | None,
    size: int,
    last: LayerState | None,
    first: bool,
    definition: Definition,
    momentum: float,
) -> Finding:
    if similarity is not None and last is not None:
        track = definition.step(last.track, similarity, momentum)
        return Finding(LayerState(track, record.outputs), track, problem=None)
    problem = record.problem or (None if first else STARTS_OVER)
    state = LayerState(definition.start(size), record.outputs) if record.outputs else None
    return Finding(state, None, problem)


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
