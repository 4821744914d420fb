"""Draw bench/results/<device>/layers.csv: python -m bench.plot [--active 0.1]

One line per layer: the speed-up of its backward, naive and ours, and the ceiling of ours.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.harness import results_path

# Okabe and Ito's palette, told apart by colour-blind readers.
SERIES = {
    "naive": ("#595959", "x", "naive"),
    "ours, propagate=all": ("#D55E00", "o", 'ours, propagate="all" (exact)'),
    "ours, propagate=active": ("#0072B2", "D", 'ours, propagate="active"'),
}
STYLE = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
}
Speedups = dict[str, Mapping[str, str]]


def load(path: Path, active: float) -> dict[str, Speedups]:
    """Layer -> provider -> CSV row, of the rows whose active share is nearest to ``active``.

    Raises:
        ValueError: the file has no layer with frozen neurons.
    """
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if float(row["active"]) < 1:
                rows[f"{row['geometry']}  {row['dtype']}  {row['layout']}"].append(row)
    layers = {}
    for layer, measured in rows.items():
        nearest = min((row["active"] for row in measured), key=lambda s: abs(float(s) - active))
        layers[layer] = {row["provider"]: row for row in measured if row["active"] == nearest}
    if not layers:
        raise ValueError(f"{path}: expected rows below 100 % active, found none; run bench.layers")
    return layers


def draw(layers: Mapping[str, Speedups], active: float, path: Path) -> None:
    """One row of marks per layer, widest gain on top."""
    exact = "ours, propagate=all"
    ordered = sorted(layers.items(), key=lambda item: float(item[1][exact]["speedup"]))
    with rc_context(STYLE):
        figure = Figure(figsize=(12, 2.2 + 0.32 * len(ordered)), layout="constrained")
        axes = figure.subplots()
        for provider, (color, marker, label) in SERIES.items():
            at = [y for y, (_, providers) in enumerate(ordered) if provider in providers]
            speedups = [float(ordered[y][1][provider]["speedup"]) for y in at]
            axes.scatter(speedups, at, color=color, marker=marker, label=label, zorder=3)
        _ceilings(axes, [providers for _, providers in ordered])
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}x")
        axes.set_yticks(range(len(ordered)), [name for name, _ in ordered], fontsize=9)
        axes.set_xlabel("speed-up of the layer's backward against dense")
        gains = [float(providers[exact]["speedup"]) for _, providers in ordered]
        axes.set_title(
            f"With {active:.0%} of the neurons active, {sum(g > 1 for g in gains)} of "
            f"{len(gains)} layers run backward faster; median {median(gains):.2f}x",
            loc="right",
            fontweight="bold",
        )
        figure.legend(loc="outside lower center", ncols=4)
        figure.savefig(path, dpi=120)


def _ceilings(axes: Axes, providers: Sequence[Speedups]) -> None:
    for name, (color, _, _) in SERIES.items():
        for y, rows in enumerate(providers):
            if name in rows and rows[name]["ceiling_ms"]:
                ceiling = float(rows[name]["dense_ms"]) / float(rows[name]["ceiling_ms"])
                axes.plot(ceiling, y, marker="|", markersize=11, color=color)
    axes.plot(
        [], [], marker="|", markersize=11, color="black", linestyle="", label="their ceilings"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--input", type=Path, default=results_path("layers"))
    parser.add_argument("--active", type=float, default=0.1, help="share of active neurons")
    parser.add_argument("--output", type=Path, help="PNG file (beside the input by default)")
    arguments = parser.parse_args(argv)
    path = arguments.output or arguments.input.with_suffix(".png")
    draw(load(arguments.input, arguments.active), arguments.active, path)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
