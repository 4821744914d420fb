"""The figure of a run: accuracy, frozen share and backward time over its epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from examples.results import Backward
from examples.training import Row, Settings

# Okabe and Ito's palette, told apart by colour-blind readers.
DENSE, NEQ, CEILING = "#0072B2", "#D55E00", "#595959"
STYLE = {
    "font.size": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "lines.linewidth": 2.5,
}


def save_figure(path: Path, rows: Sequence[Row], settings: Settings) -> None:
    """Draw the run to ``path``; the title states what was measured."""
    epochs = [row.epoch for row in rows]
    with rc_context(STYLE):
        figure = Figure(figsize=(12, 9.5), layout="constrained")
        panels = figure.subplots(3, 1, sharex=True)
        figure.suptitle(title(rows), fontsize=18, fontweight="bold", x=0.01, ha="left")
        _accuracy(panels[0], epochs, rows)
        _frozen(panels[1], epochs, rows)
        _backward(panels[2], epochs, rows)
        _mark_decay(panels, settings.milestones)
        panels[0].set_xlim(0.5, len(rows) + 0.5)
        panels[2].set_xlabel(f"epoch  ({_conditions(settings)})")
        panels[2].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.savefig(path, dpi=150)


def _conditions(settings: Settings) -> str:
    return (
        f"ResNet-32, digits at 32x32, batch {settings.batch_size}, seed {settings.seed}, "
        f'propagate="{settings.propagate}", {settings.device}'
    )


def title(rows: Sequence[Row]) -> str:
    """The finding, in one or two lines."""
    spent = Backward.over(rows)
    change = 1 - spent.neq / spent.dense
    word = "less" if change >= 0 else "more"
    final = rows[-1]
    return (
        f"NEq spends {abs(change):.0%} {word} time in the backward pass over {len(rows)} epochs,\n"
        f"at {final.neq.accuracy:.1%} test accuracy (dense: {final.dense.accuracy:.1%})"
    )


def _accuracy(panel: Axes, epochs: list[int], rows: Sequence[Row]) -> None:
    dense = [100 * row.dense.accuracy for row in rows]
    ours = [100 * row.neq.accuracy for row in rows]
    panel.plot(epochs, dense, color=DENSE)
    panel.plot(epochs, ours, color=NEQ, linestyle=(0, (4, 1.5)))
    _label_ends(panel, epochs[-1], {"dense": (dense[-1], DENSE), "NEq": (ours[-1], NEQ)})
    panel.set_ylabel("test accuracy, %")


def _frozen(panel: Axes, epochs: list[int], rows: Sequence[Row]) -> None:
    frozen = [100 * row.frozen for row in rows]
    panel.fill_between(epochs, frozen, color=NEQ, alpha=0.25, linewidth=0)
    panel.plot(epochs, frozen, color=NEQ)
    panel.set_ylim(0, 104)
    panel.set_ylabel("neurons frozen, %")


def _backward(panel: Axes, epochs: list[int], rows: Sequence[Row]) -> None:
    dense = [row.dense.backward_ms for row in rows]
    ours = [row.neq.backward_ms for row in rows]
    panel.plot(epochs, dense, color=DENSE)
    ceiling = [row.ceiling_ms for row in rows]
    panel.plot(epochs, ceiling, color=CEILING, linestyle=":", linewidth=2)
    panel.plot(epochs, ours, color=NEQ)
    panel.set_ylim(0, 1.15 * max(dense + ours))
    ends = {"dense": (dense[-1], DENSE), "NEq": (ours[-1], NEQ), "ceiling": (ceiling[-1], CEILING)}
    _label_ends(panel, epochs[-1], ends)
    panel.set_ylabel("backward, ms a step")


def _label_ends(panel: Axes, epoch: int, ends: dict[str, tuple[float, str]]) -> None:
    """Name each curve at its right end, apart from each other where they end together."""
    low, high = panel.get_ylim()
    gap, at = 0.11 * (high - low), -float("inf")
    heights = []
    for value, _ in sorted(ends.values()):
        at = max(value, at + gap)
        heights.append(at)
    overflow = max(0.0, heights[-1] - high)
    ordered = sorted(ends.items(), key=lambda end: end[1])
    for (name, (_, color)), height in zip(ordered, heights, strict=True):
        panel.annotate(
            name, (epoch, height - overflow), xytext=(10, 0), textcoords="offset points",
            color=color, va="center", fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def _mark_decay(panels: Sequence[Axes], milestones: Sequence[int]) -> None:
    """A line where the learning rate falls, named in the first panel."""
    for milestone in milestones:
        for panel in panels:
            panel.axvline(milestone + 0.5, color="#999999", linewidth=1.2, linestyle=(0, (2, 3)))
        panels[0].annotate(
            "rate / 10", (milestone + 0.5, 0), xycoords=("data", "axes fraction"), xytext=(5, 8),
            textcoords="offset points", color="#666666", fontsize=12,
        )  # fmt: skip
