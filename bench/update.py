"""What measuring equilibrium costs, as a share of an epoch of training: python -m bench.update

A tracker's update runs the probe through the model and compares; an epoch is 5,000 training steps,
of which some are timed. Updates take turns with steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

import neq_kernels as neq
from bench.harness import Stopwatch, results_path, write_csv
from bench.models import NETWORKS, Network
from bench.train import Contender, contender, draw

STEPS = 5000
PROBE = 50  # images, or sequences
LIMIT = 0.01


@dataclass(frozen=True)
class Update:
    """``epoch_share``: of one update, in an epoch of :data:`STEPS` steps."""

    network: str
    dtype: str
    active: float
    probe: int
    update_ms: float
    step_ms: float
    epoch_share: float


def measure(
    network: Network, share: float, device: str = "cpu", rounds: int = 5, probe: int = PROBE
) -> list[Update]:
    """One row: the network's own batch, ``share`` of its neurons active."""
    torch.manual_seed(0)
    model, batch = network.build(device, network.layouts[0])
    ours = contender(model, draw(model, "random", share))
    images = batch[:probe]
    keep = neq.selectors.Fixed(neq.get_active(ours.model))
    tracker = neq.Equilibrium(
        ours.model, [images], selector=keep, warmup=0, exclude=(),
        forward=lambda model, x: network.training_loss(model, x),
    )  # fmt: skip
    tracker.update()
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        times.append((_update(tracker, device), _step(ours, network, batch)))
    update, step = (median(column) for column in zip(*times[1:], strict=True))
    return [
        Update(
            network.name, network.precision, share, len(images), update, step,
            update / (STEPS * step),
        )
    ]  # fmt: skip


def _update(tracker: neq.Equilibrium, device: str) -> float:
    watch = Stopwatch(device)
    tracker.update()
    watch.mark()
    return watch.ms()[0]


def _step(ours: Contender, network: Network, batch: torch.Tensor) -> float:
    return ours.step(network, batch)[1]


def verdict(row: Update) -> str:
    word = "within" if row.epoch_share <= LIMIT else "ABOVE"
    return (
        f"{row.network}, {row.dtype}: an update takes {row.update_ms:.1f} ms, a step "
        f"{row.step_ms:.1f} ms: {row.epoch_share:.3%} of {STEPS} steps, {word} {LIMIT:.0%}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--active", type=float, default=0.5, help="share of active neurons")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    rows: list[Update] = []
    for name in arguments.networks:
        rows += measure(NETWORKS[name], arguments.active, arguments.device)
        print(verdict(rows[-1]), flush=True)
    path = arguments.output or results_path("update", arguments.device)
    write_csv(path, rows, arguments.device)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
