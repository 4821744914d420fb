"""Pictures of the tables in bench/results/<device>/, beside them: python -m bench.plot

* layers.csv: a layer's speed-up over its active share, with the ceilings (layers-*.png, a picture
  per layout), and the share of the ceiling that was reached (layers-ceiling.png);
* never_slower.csv: every point's speed against dense (never_slower.png).
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.harness import results_path
from bench.never_slower import FREE_US, LIMIT, SMALL_MS

# Okabe and Ito's palette, told apart by colour-blind readers.
ORANGE, BLUE, GREY = "#D55E00", "#0072B2", "#8C8C8C"
EXACT, PARTIAL = "ours, propagate=all", "ours, propagate=active"
SERIES = {
    "naive": (GREY, "x", "naive: Python list, zero-fill"),
    EXACT: (ORANGE, "o", 'ours, propagate="all" (exact)'),
    PARTIAL: (BLUE, "D", 'ours, propagate="active" (approximation)'),
}
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
}
LAYOUTS = {
    "contiguous": "NCHW and linear layers",
    "channels_last": "channels_last",
}
COLUMNS = 5
# What makes two measurements ones of the same point.
POINT = ("geometry", "dtype", "layout", "active")
SPEEDS = (0.25, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 4)
Table = Sequence[Mapping[str, str]]


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file.

    Raises:
        ValueError: there are none.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path}: expected rows, found none; run python -m bench.{path.stem}")
    return rows


def short(row: Mapping[str, str]) -> str:
    """The layer's name, with its dtype where that is not float32."""
    name = row["geometry"].rpartition("(")[2].rstrip(")")
    return name if row["dtype"] == "float32" else f"{name}, {row['dtype']}"


def machine(row: Mapping[str, str]) -> str:
    return f"{row['device']}, {row['threads']} threads, torch {row['torch']}"


def draw_speedups(rows: Table, title: str, path: Path) -> None:
    """A panel per layer: speed-up over active share, ceilings dashed."""
    layers: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        layers[f"{short(row)}\n{_sizes(row)}"].append(row)
    columns = min(COLUMNS, len(layers))
    lines = ceil(len(layers) / columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(max(3.1 * columns, 9), 2.7 * lines + 1.5), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat
        for axes, (name, measured) in zip(panels, layers.items(), strict=False):
            axes.set_title(name, fontsize=9)
            for provider in SERIES:
                _curve(axes, [row for row in measured if row["provider"] == provider])
            axes.axhline(1, color="black", linewidth=1)
            _share_axis(axes)
        for axes in panels[len(layers) :]:
            axes.set_visible(False)
        for axes in panels[max(0, len(layers) - columns) : len(layers)]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("active neurons", fontsize=9)
        figure.suptitle(title, fontweight="bold")
        figure.supylabel("speed-up of the layer's backward against dense torch")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.savefig(path, dpi=100)


def _curve(axes: Axes, rows: Table) -> None:
    if not rows:
        return
    color, marker, label = SERIES[rows[0]["provider"]]
    rows = sorted(rows, key=lambda row: float(row["active"]))
    shares = [float(row["active"]) for row in rows]
    axes.plot(shares, [float(row["speedup"]) for row in rows], color=color, marker=marker,
              markersize=5, label=label)  # fmt: skip
    if all(row["ceiling_ms"] for row in rows):
        ceilings = [float(row["dense_ms"]) / float(row["ceiling_ms"]) for row in rows]
        axes.plot(shares, ceilings, color=color, linestyle="--", linewidth=1,
                  label=f"its ceiling ({rows[0]['provider'].partition('=')[2]})")  # fmt: skip


def _share_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    axes.set_xlim(1.12, 0.075)
    axes.set_xticks([1, 0.5, 0.25, 0.1], ["100%", "50%", "25%", "10%"])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}x")


def _sizes(row: Mapping[str, str]) -> str:
    return row["geometry"].partition(" ")[2].rpartition(" (")[0]


def draw_ceilings(rows: Table, path: Path) -> None:
    """A line per layer and layout, a column per active share, colour: share of the ceiling."""
    halves = {name: _shares(rows, name) for name in (EXACT, PARTIAL)}
    layers = list(halves[EXACT])
    columns = sorted({share for found in halves[EXACT].values() for share in found}, reverse=True)
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(11, 2.2 + 0.27 * len(layers)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (provider, found) in zip(panels, halves.items(), strict=True):
            values = [[found[layer].get(s, float("nan")) for s in columns] for layer in layers]
            image = axes.imshow(values, cmap="cividis", vmin=0.3, vmax=1, aspect="auto")
            for y, line in enumerate(values):
                for x, value in enumerate(line):
                    if value == value:  # a layer of few neurons has no such share
                        color = "black" if value > 0.7 else "white"
                        axes.text(x, y, f"{value:.0%}", ha="center", va="center", color=color,
                                  fontsize=9)  # fmt: skip
            axes.set_xticks(range(len(columns)), [f"{share:.0%}" for share in columns])
            axes.set_yticks(range(len(layers)), layers, fontsize=9)
            axes.set_title(SERIES[provider][2], fontsize=11)
            axes.set_xlabel("active neurons")
        bar = figure.colorbar(image, ax=panels, extend="both", shrink=0.5, aspect=30)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        bar.set_label("share of the ceiling")
        figure.suptitle(
            "Share of the ceiling reached: 100% if every active neuron costs exactly its share\n"
            f"{machine(rows[0])}",
            fontweight="bold",
        )
        figure.savefig(path, dpi=100)


def _shares(rows: Table, provider: str) -> dict[str, dict[float, float]]:
    """Layer -> nominal active share -> share of the ceiling."""
    found: dict[str, dict[float, float]] = defaultdict(dict)
    for row in rows:
        if row["provider"] == provider and float(row["active"]) < 1:
            nominal = min((0.5, 0.25, 0.1), key=lambda share: abs(share - float(row["active"])))
            layout = row["layout"].replace("contiguous", "NCHW")
            found[f"{short(row)}, {layout}"][nominal] = float(row["ceiling_share"])
    return found


def draw_never_slower(rows: Table, path: Path) -> None:
    """Speed over the dense backward's time, a mark per point and process."""
    last = {(row["run"].split()[0], *(row[key] for key in POINT)): row for row in rows}
    counted = list(last.values())
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 6.5), layout="constrained")
        axes = figure.subplots()
        first = [row for row in rows if "again" not in row["run"]]
        times, speeds = ([float(row[key]) for row in first] for key in ("dense_ms", "itself"))
        axes.scatter(times, speeds, s=14, color=GREY, marker="x", linewidth=0.8,
                     label="dense against itself: the machine's scatter")  # fmt: skip
        shares = sorted({row["active"] for row in counted}, key=float, reverse=True)
        marks = zip(shares, ("#56B4E9", BLUE, ORANGE, "#009E73"), "sDo^", strict=False)
        for share, color, marker in marks:
            of = [row for row in counted if row["active"] == share]
            times, speeds = ([float(row[key]) for row in of] for key in ("dense_ms", "speed"))
            axes.scatter(times, speeds, s=22, color=color, marker=marker, alpha=0.8,
                         label=f"ours, {float(share):.0%} active")  # fmt: skip
        _bounds(axes, [row for row in counted if float(row["high"]) < LIMIT])
        axes.set_xscale("log")
        axes.set_yscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        bottom, top = axes.get_ylim()
        ticks = [speed for speed in SPEEDS if bottom <= speed <= top]
        axes.set_yticks(ticks, [f"{speed:g}x" for speed in ticks])
        axes.axhline(1, color="black", linewidth=1.2)
        axes.axhline(LIMIT, color="black", linewidth=1, linestyle="--", label=f"{LIMIT}x")
        left = min(axes.get_xlim()[0], SMALL_MS / 2)
        times = [left * (SMALL_MS / left) ** (i / 40) for i in range(41)]
        floor = [time / (time + FREE_US / 1e3) for time in times]
        axes.fill_between(times, floor, 1, color="#F0E442", alpha=0.35,
                          label=f"up to {FREE_US:.0f} us more: counts as equal")  # fmt: skip
        axes.set_xlim(left=left)
        axes.set_xlabel("dense backward of the layer, ms (frozen rows zeroed)")
        axes.set_ylabel("speed against dense (above 1x: faster)")
        points = {key[1:] for key in last}
        axes.set_title(
            f"Is it ever slower? {len(points)} points: layers x layouts x dtypes x shares\n"
            f"{machine(rows[0])}",
            fontweight="bold",
        )
        figure.legend(loc="outside lower center", ncols=3)
        figure.savefig(path, dpi=100)


def _bounds(axes: Axes, rows: Table) -> None:
    if not rows:
        return
    times, speeds, low, high = (
        [float(row[key]) for row in rows] for key in ("dense_ms", "speed", "low", "high")
    )
    below = [s - l for s, l in zip(speeds, low, strict=True)]
    above = [h - s for s, h in zip(speeds, high, strict=True)]
    axes.errorbar(times, speeds, yerr=[below, above], fmt="none", ecolor="black", linewidth=0.9,
                  zorder=1, label=f"95 % bounds, where they stay below {LIMIT}x")  # fmt: skip


def draw(folder: Path) -> list[Path]:
    """Every picture whose table lies in ``folder``, beside it; returns their paths."""
    written = []
    if (folder / "layers.csv").exists():
        rows = read(folder / "layers.csv")
        for layout, words in LAYOUTS.items():
            of = [
                row
                for row in rows
                if row["layout"] == layout or (row["layout"], layout) == ("tokens", "contiguous")
            ]
            if of:
                path = folder / f"layers-{layout}.png"
                draw_speedups(
                    of,
                    f"Backward of one layer as its neurons freeze, {words}\n{machine(of[0])}",
                    path,
                )
                written.append(path)
        written.append(folder / "layers-ceiling.png")
        draw_ceilings(rows, written[-1])
    if (folder / "never_slower.csv").exists():
        written.append(folder / "never_slower.png")
        draw_never_slower(read(folder / "never_slower.csv"), written[-1])
    return written


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=results_path("layers").parent)
    arguments = parser.parse_args(argv)
    written = draw(arguments.folder)
    if not written:
        raise SystemExit(
            f"{arguments.folder}: expected layers.csv or never_slower.csv, found neither; run "
            "python -m bench.layers or python -m bench.never_slower"
        )
    for path in written:
        print(f"Written: {path}")


if __name__ == "__main__":
    main()
