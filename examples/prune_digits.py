"""Prune LeNet-5 and ResNet-32 on handwritten digits: ``python -m examples.prune_digits``.

One-shot and gradual pruning, SeReNe and LOBSTER, at equal error; then transfer from digits 0-4 to
5-9. Leaves tables and a figure in ``--output-dir``.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from time import perf_counter

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from examples import digits
from examples.pruning_runs import (
    METHODS,
    NETWORKS,
    Point,
    Pruning,
    Settings,
    Split,
    accuracy,
    train_dense,
    transfer,
)
from neq_kernels import pruning

COLUMNS = (
    "network", "method", "seed", "test_error", "zeroed", "removed", "kilobytes", "forward_ms",
    "backward_ms", "shrunk_kilobytes", "shrunk_forward_ms", "shrunk_backward_ms", "psp_entropy",
    "eigenvalue", "trace",
)  # fmt: skip
TIMED_BATCH = 64
DEFAULTS = {"LeNet-5": {}, "ResNet-32": {"dense": 4, "epochs": 6, "tune": 1, "rate": 0.05}}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--dense", type=int, help="epochs that train the dense network")
    parser.add_argument("--epochs", type=int, help="epochs that prune gradually")
    parser.add_argument("--tune", type=int, help="epochs of fine-tuning per one-shot amount")
    parser.add_argument("--train-images", type=int, help="the first so many images only")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/pruning"))
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    data = digits.load("cpu", train_images=arguments.train_images)
    given = {name: getattr(arguments, name) for name in ("dense", "epochs", "tune")}
    given = {name: value for name, value in given.items() if value is not None}
    rows: list[dict[str, object]] = []
    moved: list[dict[str, object]] = []
    points: dict[str, list[Point]] = {}
    for network in arguments.networks:
        for seed in arguments.seeds:
            settings = Settings(**{"network": network, "seed": seed, **DEFAULTS[network], **given})
            found, seen = compare(settings, Split.of(data, range(10)))
            rows += found
            points.setdefault(network, []).extend(seen)
            moved += transfers(settings, data)
            print(_text(found, COLUMNS[1:]), flush=True)
    folder = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "pruning.csv", rows)
    _write(folder / "transfer.csv", moved)
    save_figure(folder / "pruning.png", points)
    print(f"\n{_means(rows)}\n\n{_means(moved)}\nWritten: {folder}")


def compare(settings: Settings, data: Split) -> tuple[list[dict[str, object]], list[Point]]:
    """A row for the dense network and one per method, and the points on the way."""
    dense = train_dense(settings, data)
    rows, points = [describe("dense", settings, dense, data)], []
    for method in METHODS:
        run = Pruning(method, dense, settings, data)
        points += run.points
        rows.append(describe(method, settings, run.model, data))
    return rows, points


def describe(method: str, settings: Settings, model: nn.Module, data: Split) -> dict[str, object]:
    """One row of the table; what is shrunk stays empty without neurons to remove."""
    test = [data.test]
    some = [(data.train[0][:256], data.train[1][:256])]
    curvature = pruning.sharpness(model, some, iterations=15, tolerance=0.02, probes=5)
    entropies = pruning.psp_entropy(model, test, per="channel")
    values = [error_of(model, data), pruning.share_zeroed(model), pruning.share_removed(model)]
    values += costs(model, data)
    # A class may be missing from a small test set.
    entropy = mean(e.nansum(1).mean().item() for e in entropies.values())
    after: list[object] = [None, None, None]
    if pruning.share_removed(model) > 0 and hasattr(pruning, "shrink"):
        small = copy.deepcopy(model).eval()
        pruning.set_masks(small, {})  # they are of the layers as they were
        pruning.shrink(small, data.test[0][:1])
        after = [*costs(small, data)]
    found = [*values, *after, entropy, curvature.eigenvalue, curvature.trace]
    return dict(zip(COLUMNS, [settings.network, method, settings.seed, *found], strict=True))


def error_of(model: nn.Module, data: Split) -> float:
    return 1 - accuracy(model, data.test)


def costs(model: nn.Module, data: Split, repeats: int = 7) -> list[float]:
    """Kilobytes on disk, and milliseconds of a forward and a backward pass of one batch."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    images, labels = (part[:TIMED_BATCH] for part in data.train)
    forward, backward = [], []
    model = copy.deepcopy(model).train()
    for _ in range(repeats):
        started = perf_counter()
        loss = F.cross_entropy(model(images), labels)
        before = perf_counter()
        loss.backward()
        forward.append((before - started) * 1e3)
        backward.append((perf_counter() - before) * 1e3)
    return [file.getbuffer().nbytes / 1e3, median(forward), median(backward)]


def transfers(settings: Settings, data: digits.Digits) -> list[dict[str, object]]:
    """Train and prune on digits 0-4, then classify 5-9."""
    first, second = Split.of(data, range(5)), Split.of(data, range(5, 10))
    dense = train_dense(settings, first)
    rows = []
    for method in ("dense", "one-shot", "gradual"):
        model = dense if method == "dense" else Pruning(method, dense, settings, first).model
        probe, tuned = transfer(model, settings, second)
        rows.append(
            {
                "network": settings.network, "method": method, "seed": settings.seed,
                "zeroed": pruning.share_zeroed(model), "linear_probe": probe, "fine_tuned": tuned,
            }
        )  # fmt: skip
    return rows


def save_figure(path: Path, points: dict[str, list[Point]]) -> None:
    """Test error against the share of zeroed parameters, a panel per network."""
    figure = Figure(figsize=(6 * len(points), 4.5), layout="constrained")
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    for panel, (network, found) in zip(panels, points.items(), strict=True):
        for method in METHODS:
            own = [p for p in found if p.method == method]
            panel.plot(
                [100 * p.zeroed for p in own], [100 * p.error for p in own], "o", label=method,
                alpha=0.7,
            )  # fmt: skip
        panel.set(title=network, xlabel="parameters zeroed, %", ylabel="test error, %")
        panel.set_yscale("symlog", linthresh=1)
        panel.legend()
    figure.savefig(path, dpi=120)


def _write(path: Path, rows: Sequence[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _means(rows: Sequence[dict[str, object]]) -> str:
    """The mean of every number over the seeds, a line per network and method."""
    groups: dict[tuple[object, object], list[dict[str, object]]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["method"]), []).append(row)
    columns = [name for name in rows[0] if name not in ("network", "method", "seed")]
    means = []
    for (network, method), own in groups.items():
        line: dict[str, object] = {"network": network, "method": method}
        for name in columns:
            numbers = [float(str(row[name])) for row in own if row[name] is not None]
            line[name] = mean(numbers) if numbers else None
        means.append(line)
    return _text(means, ["network", "method", *columns])


def _text(rows: Sequence[dict[str, object]], columns: Sequence[str]) -> str:
    cells = [list(columns)]
    for row in rows:
        values = [row[name] for name in columns]
        cells.append(
            ["" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in values]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


if __name__ == "__main__":
    main()
