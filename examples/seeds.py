"""Accuracy of dense and NEq training over several seeds: ``python -m examples.seeds``."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from examples.results import Backward
from examples.train_digits import add_settings, run


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_settings(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args(argv)
    results = []
    for seed in arguments.seeds:
        _, rows = run(arguments, seed, title=f"seed {seed}\n")
        final, backward = rows[-1], Backward.over(rows)
        results.append(
            (seed, final.dense.accuracy, final.neq.accuracy, backward.dense / backward.neq)
        )
    print(f"\n{table(results)}")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    path = arguments.output_dir / f"seeds-{arguments.propagate}.csv"
    _write(path, results)
    print(f"Written: {path}")


def table(results: Sequence[tuple[int, float, float, float]]) -> str:
    """Final test accuracies per seed, then mean and standard deviation, as text."""
    lines = ["seed     dense     NEq    difference   backward, whole run"]
    for seed, dense, ours, speedup in results:
        lines.append(
            f"{seed:4} {dense:9.2%} {ours:8.2%} {100 * (ours - dense):+7.2f} points {speedup:9.2f}x"
        )
    if len(results) > 1:
        _, dense, ours, speedups = zip(*results, strict=True)
        gap = 100 * (mean(ours) - mean(dense))
        lines.append(
            f"mean {mean(dense):9.2%} {mean(ours):8.2%} {gap:+7.2f} points {mean(speedups):9.2f}x"
        )
        lines.append(f"std  {stdev(dense):9.2%} {stdev(ours):8.2%}")
    return "\n".join(lines)


def _write(path: Path, results: Sequence[tuple[int, float, float, float]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("seed", "dense_accuracy", "neq_accuracy", "backward_speedup"))
        writer.writerows((seed, *(f"{value:.6g}" for value in rest)) for seed, *rest in results)


if __name__ == "__main__":
    main()
