"""What the pruning example leaves behind: rows as CSV, tables of means, and a figure."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from examples.figure import STYLE

Row = Mapping[str, object]
# Marker and colour (Okabe and Ito's palette, told apart by colour-blind readers).
LOOKS = {
    "one-shot": ("s", "#000000"),
    "gradual": ("o", "#0072B2"),
    "SeReNe": ("^", "#E69F00"),
    "LOBSTER": ("D", "#CC79A7"),
}
# Columns of a table: heading, column of the CSV, factor, decimals.
EQUAL_ERROR = (
    ("test error, %", "test_error", 100, 2),
    ("parameters zeroed, %", "zeroed", 100, 2),
    ("neurons removed, %", "removed", 100, 1),
    ("kB", "kilobytes", 1, 0),
    ("kB shrunk", "shrunk_kilobytes", 1, 0),
    ("forward ms", "forward_ms", 1, 2),
    ("shrunk", "shrunk_forward_ms", 1, 2),
    ("backward ms", "backward_ms", 1, 2),
    ("shrunk", "shrunk_backward_ms", 1, 2),
)
MINIMA = (
    ("test error, %", "test_error", 100, 2),
    ("parameters zeroed, %", "zeroed", 100, 2),
    ("neurons removed, %", "removed", 100, 1),
    ("PSP-entropy, bits", "psp_entropy", 1, 2),
    ("largest eigenvalue", "eigenvalue", 1, 1),
    ("trace", "trace", 1, 0),
)
TRANSFER = (
    ("parameters zeroed, %", "zeroed", 100, 2),
    ("linear probe, %", "linear_probe", 100, 2),
    ("fine-tuned, %", "fine_tuned", 100, 2),
)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Sequence[Row]) -> None:
    """All rows, at once or not at all."""
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )
    os.replace(part, path)


def tables(rows: Iterable[Row], moved: Iterable[Row]) -> str:
    """Three Markdown tables: means over seeds, with deviations in brackets."""
    rows = list(rows)
    best = [row for row in rows if " at " not in str(row["method"])]
    minima = [row for row in rows if row["method"] != "one-shot"]
    return "\n".join(
        (
            "Most pruned network of equal error:\n",
            _table(best, EQUAL_ERROR),
            "One-shot at the other methods' shares of zeros:\n",
            _table(minima, MINIMA),
            "From digits 0-4 to 5-9, test accuracy:\n",
            _table(list(moved), TRANSFER),
        )
    )


def _table(rows: Sequence[Row], columns: Sequence[tuple[str, str, float, int]]) -> str:
    heads = ["network", "method", *(head for head, *_ in columns)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    groups: dict[tuple[object, object], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["method"]), []).append(row)
    for (network, method), own in groups.items():
        cells = [_cell([row[name] for row in own], by, digits) for _, name, by, digits in columns]
        lines.append(f"| {' | '.join([str(network), str(method), *cells])} |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[object], factor: float, digits: int) -> str:
    """Mean and, of two or more, standard deviation; a dash where a seed has no value."""
    if any(value in ("", None) for value in values):
        return "-"
    numbers = [factor * float(str(value)) for value in values]
    spread = f" ± {stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{mean(numbers):.{digits}f}{spread}"


def save_figure(path: Path, points: Sequence[Row], rows: Sequence[Row]) -> None:
    """Test error against the share of parameters left, a panel per network: small, each network on
    the way, large, the means over fifths of a decade."""
    networks = list(dict.fromkeys(str(point["network"]) for point in points))
    with rc_context(STYLE):
        figure = Figure(figsize=(7 * len(networks), 6), layout="constrained")
        panels = figure.subplots(1, len(networks), squeeze=False, sharey=True)[0]
        for panel, network in zip(panels, networks, strict=True):
            own = [point for point in points if point["network"] == network]
            dense = [
                _percent(row["test_error"])
                for row in rows
                if (row["network"], row["method"]) == (network, "dense")
            ]
            _draw(panel, own, mean(dense))
            panel.set_title(network, loc="left", fontweight="bold")
        panels[0].set_ylabel("test error, %")
        panels[0].legend(loc="upper left", frameon=False)
        figure.savefig(path, dpi=120)


def _draw(panel: Axes, points: Sequence[Row], dense: float) -> None:
    panel.axhline(dense, color="#595959", linestyle=":", linewidth=2, zorder=1)
    panel.annotate(
        "dense", (0.99, dense), xycoords=("axes fraction", "data"), xytext=(0, -4),
        textcoords="offset points", color="#595959", ha="right", va="top",
    )  # fmt: skip
    for method, (marker, color) in LOOKS.items():
        left = [100 - _percent(p["zeroed"]) for p in points if p["method"] == method]
        error = [_percent(p["error"]) for p in points if p["method"] == method]
        panel.plot(left, error, marker, color=color, markersize=4, fillstyle="none", alpha=0.5)
        panel.plot(
            *_trend(left, error), f"{marker}-", color=color, label=method, markersize=8,
            markeredgecolor="white",
        )  # fmt: skip
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.xaxis.set_inverted(True)
    for axis, ticks in (
        (panel.xaxis, (100, 50, 20, 10, 5, 2, 1, 0.5)),
        (panel.yaxis, (1, 2, 3, 5, 10, 20, 40, 80)),
    ):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    panel.set_xlabel("parameters left, % (log scale)")


def _trend(left: Sequence[float], error: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means over fifths of a decade of what is left."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for at, value in zip(left, error, strict=True):
        bins.setdefault(round(5 * math.log10(at)), []).append((at, value))
    ordered = [bins[key] for key in sorted(bins, reverse=True)]
    return [mean(x for x, _ in own) for own in ordered], [
        mean(y for _, y in own) for own in ordered
    ]


def _percent(share: object) -> float:
    return 100 * float(str(share))
