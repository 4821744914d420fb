"""Prune LeNet-5 and ResNet-32 on handwritten digits: ``python -m examples.prune_digits``.

One-shot and gradual pruning, SeReNe and LOBSTER, at equal error; one-shot at the share of zeros
that each of the others reached; then transfer from digits 0-4 to 5-9. Leaves CSV files, tables and
a figure in ``--output-dir``, written after every network and seed: interrupted, the same command
goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from examples import digits, pruning_table
from examples.pruning_description import describe
from examples.pruning_runs import METHODS, Point, one_shot, prune, transfer
from examples.pruning_training import NETWORKS, Settings, Split, train_dense
from neq_kernels import pruning

DEFAULTS = {
    "LeNet-5": {},
    # The digits' own resolution. Few epochs, hence a looser tolerance than the papers'; stronger
    # shrinking than this leaves the norms' running statistics behind.
    "ResNet-32": {
        "dense": 15,
        "epochs": 60,
        "tune": 25,
        "move": 15,
        "tolerance": 1.0,
        "strength": 3e-4,
        "size": 8,
        "rate": 0.05,
    },
}
FILES = "points.csv", "transfer.csv", "pruning.csv"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--dense", type=int, help="epochs that train the dense network")
    parser.add_argument("--epochs", type=int, help="epochs that prune gradually")
    parser.add_argument("--tune", type=int, help="epochs of fine-tuning per one-shot amount")
    parser.add_argument("--move", type=int, help="epochs of fine-tuning on other classes")
    parser.add_argument("--train-images", type=int, help="the first so many images only")
    parser.add_argument("--report", action="store_true", help="only tables and figure of what is")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/pruning"))
    arguments = parser.parse_args(argv)
    folder = arguments.output_dir
    torch.set_flush_denormal(True)
    data = digits.load("cpu", train_images=arguments.train_images)
    given = {name: getattr(arguments, name) for name in ("dense", "epochs", "tune", "move")}
    given = {name: value for name, value in given.items() if value is not None}
    for network in () if arguments.report else arguments.networks:
        for seed in arguments.seeds:
            settings = Settings(**{"network": network, "seed": seed, **DEFAULTS[network], **given})
            add(folder, settings, data)
            report(folder)
    print(f"{report(folder)}\nWritten: {folder}")


def add(folder: Path, settings: Settings, data: digits.Digits) -> None:
    """Run a network with a seed and append what it gave, unless it is there.

    Raises:
        ValueError: ``folder`` holds runs of the network with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder, settings, len(data.labels))
    key = settings.network, str(settings.seed)
    kept: list[list[pruning_table.Row]] = []
    finished = {(row["network"], row["seed"]) for row in pruning_table.read(folder / FILES[-1])}
    if key in finished:
        return
    for name in FILES:
        rows = pruning_table.read(folder / name)
        kept.append([row for row in rows if (row["network"], row["seed"]) in finished])
    rows, points = compare(settings, Split.of(data, range(10), settings.size))
    found = [{"network": settings.network, **asdict(p)} for p in points]
    new = found, transfers(settings, data), rows
    # The rows that make a run count as finished come last.
    for name, old, own in zip(FILES, kept, new, strict=True):
        pruning_table.write(folder / name, [*old, *own])


def report(folder: Path) -> str:
    """Write tables and figure of the CSV files in ``folder``; gives the tables.

    Raises:
        ValueError: there are none.
    """
    points, moved, rows = (pruning_table.read(folder / name) for name in FILES)
    if not rows:
        raise ValueError(f"output-dir: expected finished runs in {folder}, got none")
    finished = {(row["network"], row["seed"]) for row in rows}
    points = [point for point in points if (point["network"], point["seed"]) in finished]
    moved = [row for row in moved if (row["network"], row["seed"]) in finished]
    text = pruning_table.tables(rows, moved)
    (folder / "pruning.md").write_text(text)
    pruning_table.save_figure(folder / "pruning.png", points, rows)
    return text


def compare(settings: Settings, data: Split) -> tuple[list[dict[str, object]], list[Point]]:
    """A row for the dense network, one per method, and one-shot once more at the share of zeros of
    each of the others; and the points on the way."""
    dense = train_dense(settings, data)
    rows, points = [describe("dense", settings, dense, data)], []
    for method in METHODS:
        levels = prune(method, dense, settings, data)
        points += levels.points(method, settings.seed)
        model = levels.most_pruned(dense)
        rows.append(describe(method, settings, model, data))
        if method != "one-shot":
            alike = one_shot(pruning.share_zeroed(model), dense, settings, data).lowest()
            rows.append(describe(f"one-shot at {method}'s", settings, alike, data))
    return rows, points


def transfers(settings: Settings, data: digits.Digits) -> list[dict[str, object]]:
    """Train and prune on digits 0-4, gradually, and one-shot to the same share of zeros; then
    classify 5-9."""
    first, second = (Split.of(data, r, settings.size) for r in (range(5), range(5, 10)))
    dense = train_dense(settings, first)
    gradual = prune("gradual", dense, settings, first).most_pruned(dense)
    alike = one_shot(pruning.share_zeroed(gradual), dense, settings, first).lowest()
    rows = []
    for method, model in {
        "dense": dense,
        "one-shot at gradual's": alike,
        "gradual": gradual,
    }.items():
        probe, tuned = transfer(model, settings, second)
        rows.append(
            {
                "network": settings.network, "method": method, "seed": settings.seed,
                "zeroed": pruning.share_zeroed(model), "linear_probe": probe, "fine_tuned": tuned,
            }
        )  # fmt: skip
    return rows


def _check_settings(folder: Path, settings: Settings, images: int) -> None:
    """Runs with different settings do not belong into one table."""
    path = folder / "settings.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    now = {**asdict(settings), "train_images": images}
    del now["network"], now["seed"]
    if known.setdefault(settings.network, now) != now:
        raise ValueError(
            f"output-dir: expected a folder without runs of {settings.network} or with ones of "
            f"{now}, got {known[settings.network]} in {path}; take another folder"
        )
    path.write_text(json.dumps(known, indent=1))


if __name__ == "__main__":
    main()
