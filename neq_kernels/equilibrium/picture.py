"""The picture of a history."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, pairwise
from os import PathLike
from typing import Any

from .epoch import EDGES, Epoch
from .report import LayerRow

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
MOST_NAMES = 30


def draw(history: Sequence[Epoch], path: str | PathLike[str]) -> None:
    """See `History.plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot: expected matplotlib; pip install matplotlib") from error
    compared = [epoch for epoch in history if epoch.epoch > 0]
    if not compared:
        raise ValueError("plot: expected an update after training, got none; call update() first")
    noted = panels_of(list(dict.fromkeys(name for epoch in history for name in epoch.values)))
    figure = Figure(figsize=(9, 8 + 2.2 * len(noted)), layout="constrained")
    heights = [4.0, 2.2, *([1.6] * len(noted))]
    panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _heat_map(panels[0], compared)
    _velocities(panels[1], compared[-1], EDGES.tolist())
    for panel, names in zip(panels[2:], noted, strict=True):
        _values(panel, history, names)
    figure.savefig(path, dpi=150)


def _heat_map(panel: Any, epochs: Sequence[Epoch]) -> None:
    names = list(dict.fromkeys(row.name for epoch in epochs for row in epoch.layers))
    shares = [[_share(epoch.layers, name) for epoch in epochs] for name in names]
    first, last = epochs[0].epoch - 0.5, epochs[-1].epoch + 0.5
    image = panel.imshow(
        shares, aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="nearest",
        extent=(first, last, len(names) - 0.5, -0.5),
    )  # fmt: skip
    every = -(-len(names) // MOST_NAMES)
    panel.set_yticks(range(0, len(names), every), names[::every], fontsize=7)
    panel.set_xlabel("epoch")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_title("frozen share of each layer, chosen after each epoch")
    panel.figure.colorbar(image, ax=panel, format=lambda share, _: f"{share:.0%}")


def _share(rows: Sequence[LayerRow], name: str) -> float:
    found = [row.frozen / row.neurons for row in rows if row.name == name]
    return found[0] if found else float("nan")


def _velocities(panel: Any, epoch: Epoch, edges: list[float]) -> None:
    counts = epoch.velocities.tolist()
    step = edges[1] / edges[0]
    borders = [edges[0] / step, *edges, edges[-1] * step]
    widths = [high - low for low, high in pairwise(borders)]
    panel.bar(borders[:-1], counts, widths, align="edge", color=BLUE)
    panel.set_xscale("log")
    panel.set_xlabel(f"|v| after epoch {epoch.epoch}; the first bar is all below {edges[0]:g}")
    panel.set_ylabel("neurons")
    if epoch.epsilon:
        panel.axvline(epoch.epsilon, color=ORANGE, label=f"epsilon = {epoch.epsilon:g}")
        panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)


def panels_of(names: Sequence[str]) -> list[list[str]]:
    """Which noted numbers share a panel: milliseconds, to be compared; each other has its own."""
    times = [name for name in names if name.endswith("_ms")]
    return [[name] for name in names if name not in times] + ([times] if times else [])


def _values(panel: Any, history: Sequence[Epoch], names: Sequence[str]) -> None:
    for name, color in zip(names, cycle((BLUE, ORANGE, GREY))):
        points = [(epoch.epoch, epoch.values[name]) for epoch in history if name in epoch.values]
        panel.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3, label=name)
    if len(names) > 1:
        panel.legend(frameon=False)
    panel.set_ylabel(names[0] if len(names) == 1 else "ms")
    panel.set_xlabel("epoch")
    panel.set_xlim(min(history[0].epoch, 0), history[-1].epoch + 0.5)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.spines[["top", "right"]].set_visible(False)
