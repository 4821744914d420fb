"""What the planner costs while it measures, and whether it then leaves files alone:
python -m bench.planning

In a fresh process with an empty plan a network trains with all neurons, then 10 % stay active and
the planner measures. The converted network takes turns with torch's own, whose time says how fast
the machine is; how long ours takes once settled, in units of that, says what the steps before
should have taken. The cost is what they took beyond, as a share of the first 100 steps. Files are
counted by Python's audit events, over the settled steps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from statistics import median, stdev
from typing import Any

import torch

import neq_kernels as neq
from bench.fresh import run_fresh, settle
from bench.harness import results_path, write_csv
from bench.models import NETWORKS, Network
from bench.train import Contender, contender, draw

STEPS, SETTLED_STEPS = 100, 20
LIMIT = 0.02
FILE_EVENTS = ("open", "os.", "pathlib.", "shutil.", "tempfile.")
_seen: list[str] | None = None


@dataclass(frozen=True)
class Cost:
    """``cost``: excess over the first 100 steps' time, with one standard error in ``error``;
    ``settled_after`` steps; ``files``: file accesses in the settled steps that followed."""

    network: str
    layout: str
    active: float
    settled_after: int
    first_steps_s: float
    cost: float
    error: float
    files: int


def excess(
    ours: Sequence[float], dense: Sequence[float], settled_after: int, steps: int = STEPS
) -> tuple[float, float, float]:
    """Total of the first ``steps`` steps of ours, its share that went into measuring, and that
    share's standard error; all from steps in turns, the last ones settled.

    After ``settled_after`` steps, those not run are taken to be like the settled ones that were.
    """
    ratios = [o / d for o, d in zip(ours[settled_after:], dense[settled_after:], strict=True)]
    expected = median(ratios)
    total = sum(ours[:settled_after])
    total += max(0, steps - settled_after) * median(ours[settled_after:])
    beyond = sum(ours[:settled_after]) - expected * sum(dense[:settled_after])
    spread = stdev(ratios) / expected
    error = spread * sqrt(settled_after + settled_after**2 / len(ratios)) / steps
    return total, beyond / total, error


def accesses(run: Callable[[], object]) -> list[str]:
    """The file accesses of Python code while ``run()`` runs."""
    global _seen
    if not _listening:
        sys.addaudithook(_listen)
        _listening.append(True)
    _seen = []
    try:
        run()
        return _seen
    finally:
        _seen = None


_listening: list[bool] = []


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and event.startswith(FILE_EVENTS):
        _seen.append(f"{event} {arguments[:1]}")


def measure(network: Network, layout: str, share: float) -> tuple[Cost, list[str]]:
    """The cost, and the file accesses that should not have been."""
    torch.manual_seed(0)
    model, batch = network.make().train(), network.batch()
    if layout == "channels_last":
        model, batch = (x.to(memory_format=torch.channels_last) for x in (model, batch))
    dense = contender(deepcopy(model))
    ours = contender(deepcopy(model), draw(model, "random", 1.0))
    for _ in range(2):
        dense.step(network, batch)
        ours.step(network, batch)
    neq.set_active(ours.model, draw(model, "random", share))
    both: dict[str, tuple[Contender, list[float]]] = {"ours": (ours, []), "dense": (dense, [])}

    def turn() -> None:
        order = list(both.values())
        for one, found in order[:: -1 if len(both["ours"][1]) % 2 else 1]:
            found.append(one.step(network, batch)[1])

    times: dict[str, list[float]] = {name: found for name, (_, found) in both.items()}
    after = settle(ours.model, lambda _: turn(), STEPS)
    files = accesses(lambda: [turn() for _ in range(SETTLED_STEPS)])
    total, cost, error = excess(times["ours"], times["dense"], after)
    found = Cost(network.name, layout, share, after, total / 1e3, cost, error, len(files))
    return found, files


def verdict(row: Cost) -> str:
    word = "within" if row.cost - 2 * row.error <= LIMIT else "ABOVE"
    return (
        f"{row.network}, {row.layout}, {row.active:.0%} active: settled after {row.settled_after} "
        f"steps, {row.cost:+.1%} (+-{2 * row.error:.1%}) of the first {STEPS} steps, {word} "
        f"{LIMIT:.0%}; {row.files} file accesses in the {SETTLED_STEPS} steps after"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--layout", help="one layout only (all of a network's by default)")
    parser.add_argument("--active", type=float, default=0.1, help="share of active neurons")
    parser.add_argument("--quick", action="store_true", help="MobileNetV2 only")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    parser.add_argument("--fresh", type=Path, help=argparse.SUPPRESS)  # what a process writes
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    if arguments.fresh:
        network = NETWORKS[arguments.networks[0]]
        row, files = measure(network, arguments.layout, arguments.active)
        print(verdict(row), *files, sep="\n  ", flush=True)
        arguments.fresh.write_text(json.dumps([asdict(row)]))
        return
    names = ["MobileNetV2"] if arguments.quick else arguments.networks
    jobs = [(name, layout) for name in names for layout in NETWORKS[name].layouts]
    if arguments.layout:
        jobs = [job for job in jobs if job[1] == arguments.layout]
    rows = [
        Cost(**row)
        for name, layout in jobs[: 1 if arguments.quick else None]
        for row in run_fresh(
            "bench.planning",
            ["--networks", name, "--layout", layout, "--active", str(arguments.active)],
        )
    ]
    path = arguments.output or results_path("planning")
    write_csv(path, rows)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
