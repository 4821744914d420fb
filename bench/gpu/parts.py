"""The parts of a GPU check, in their order: what each does, and what it would run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench import geometries, update
from bench.gpu import build, layers, operators, replay, sanitizer, steps, verify
from bench.gpu.networks import NETWORKS
from bench.gpu.place import Outcome, Place
from bench.peaks import Peaks
from neq_kernels import backends

Units = dict[str, Callable[[], Any]]
# What one measurement of a part takes at most, compilation included, in seconds.
COMPILING = 150.0


@dataclass(frozen=True)
class Part:
    """``plan`` says without a GPU what ``run`` would do."""

    name: str
    does: str
    run: Callable[[Place], Outcome]
    plan: Callable[[], list[str]]


def _build(place: Place) -> Outcome:
    return build.run(torch.cuda.get_device_capability(place.device))


def _layers(place: Place) -> Outcome:
    peaks = Peaks.measure(place.device, layers.DTYPES)
    print(f"peaks measured here: {peaks}", flush=True)
    return place.each("layers", layers.units(place.device, geometries.cases(), peaks))


def _operators(place: Place) -> Outcome:
    return place.each("operators", operators.units(place.device))


def _steps(place: Place) -> Outcome:
    return place.each("train", steps.units(NETWORKS, place.device), COMPILING)


def _costs(place: Place) -> Outcome:
    updates = place.each("update", _updates(place.device))
    replays = place.each("replay", replay.units(place.device))
    return Outcome(
        updates.done + replays.done, updates.left + replays.left,
        [*updates.failed, *replays.failed],
    )  # fmt: skip


def _updates(device: str) -> Units:
    def measure(name: str) -> list[update.Update]:
        rows = update.measure(NETWORKS[name], 0.5, device)
        print(*map(update.verdict, rows), sep="\n", flush=True)
        return rows

    return {name: lambda name=name: measure(name) for name in NETWORKS}  # type: ignore[misc]


def _planned_tests() -> list[str]:
    return [f"pytest -m gpu {path.relative_to(verify.ROOT)}" for path in verify.files()]


PARTS = {
    part.name: part
    for part in (
        Part("build", "the extension, by nvcc, for the GPU at hand", _build,
             lambda: ["NEQ_CUDA=ON " + " ".join(build.command())]),
        Part("tests", "pytest -m gpu, in several processes", verify.run, _planned_tests),
        Part("sanitizer", "compute-sanitizer over every operator", sanitizer.run,
             lambda: [f"{tool} {operator}" for tool in sanitizer.TOOLS
                      for operator in backends.OPERATORS]),
        Part("bench-layers", "every layer of five networks, dense and as neurons freeze", _layers,
             lambda: list(layers.units("cuda", geometries.cases(), Peaks(1.0, {})))),
        Part("bench-operators", "pack_channels, moments, depthwise, compact, optimizers",
             _operators, lambda: list(operators.units("cuda"))),
        Part("bench-steps", "whole training steps, eager and compiled", _steps,
             lambda: list(steps.units(NETWORKS, "cuda"))),
        Part("bench-costs", "equilibrium updates, replayed graphs", _costs,
             lambda: [f"update {name}" for name in NETWORKS] + list(replay.units("cuda"))),
    )
}  # fmt: skip
