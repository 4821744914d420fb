"""What neq.profile found: a table, a CSV file, a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike

from neq_kernels.profile.cuts import Cut

NAME_WIDTH = 40


@dataclass(frozen=True)
class LayerTime:
    """One layer's backward at one share of active neurons; times in milliseconds, per step.

    Attributes:
        active: the share asked for; ``count`` of ``size`` neurons.
        dense_ms: plain torch, all gradients.
        dgrad_ms: the same without the weight's and the bias's.
        ours_ms: by the fastest way, which is ``path``: "packed", "direct", "direct+dx", "dense"
            (and then zeroed), or "plain" where all are active.
        ceiling_ms: if every active row cost exactly its share.
    """

    name: str
    kind: str
    active: float
    count: int
    size: int
    dense_ms: float
    dgrad_ms: float
    ours_ms: float
    ceiling_ms: float
    path: str

    @property
    def wgrad_ms(self) -> float:
        """What the gradients of weight and bias take of ``dense_ms``."""
        return self.dense_ms - self.dgrad_ms

    @property
    def speedup(self) -> float:
        return self.dense_ms / self.ours_ms

    @property
    def of_ceiling(self) -> float:
        """Share reached of the speed-up that the ceiling stands for."""
        return self.ceiling_ms / self.ours_ms


@dataclass(frozen=True)
class Profile:
    """What :func:`neq_kernels.profile` measured. ``str()`` gives the table.

    Attributes:
        layers: a row per layer and share.
        forward_ms, backward_ms: of the whole model with all neurons active.
        cuts: every prefix of the network, for what freezing it whole saves.
    """

    layers: tuple[LayerTime, ...]
    forward_ms: float
    backward_ms: float
    cuts: tuple[Cut, ...] = ()

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of active neurons, as they were asked for."""
        return tuple(dict.fromkeys(row.active for row in self.layers))

    def at(self, active: float) -> tuple[LayerTime, ...]:
        """The rows of one share."""
        return tuple(row for row in self.layers if row.active == active)

    def backward_speedup(self, active: float) -> float:
        """Of the whole backward, if every layer kept that share: layers take what they were
        measured to take, everything else what it took in the dense backward."""
        saved = sum(row.dense_ms - row.ours_ms for row in self.at(active))
        return self.backward_ms / max(self.backward_ms - saved, 1e-9)

    def step_speedup(self, active: float) -> float:
        """Of forward and backward together."""
        saved = sum(row.dense_ms - row.ours_ms for row in self.at(active))
        step = self.forward_ms + self.backward_ms
        return step / max(step - saved, 1e-9)

    def __str__(self) -> str:
        rows = [row for share in self.shares for row in self.at(share)]
        lines = table(rows, min(NAME_WIDTH, max(len(row.name) for row in rows)))
        lines.append(
            f"forward {self.forward_ms:.1f} ms, backward {self.backward_ms:.1f} ms with all "
            "neurons active; expected:"
        )
        lines += [
            f"  {share:.0%} active: backward {self.backward_speedup(share):.2f}x, "
            f"forward and backward {self.step_speedup(share):.2f}x"
            for share in self.shares
        ]
        return "\n".join(lines)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write a line per layer and share, times in milliseconds."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            columns = [*asdict(self.layers[0]), "wgrad_ms", "speedup", "of_ceiling"]
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([getattr(row, name) for name in columns] for row in self.layers)

    def plot(self, path: str | PathLike[str], active: float | None = None) -> None:
        """Draw a bar per layer, what dgrad and wgrad still take and what is saved, into a picture
        file; ``active`` is one of :attr:`shares`, the smallest unless given.

        Raises:
            ValueError: that share was not measured.
            ImportError: matplotlib is not installed.
        """
        share = min(self.shares) if active is None else active
        rows = self.at(share)
        if not rows:
            raise ValueError(f"active: expected one of {self.shares}, got {active!r}")
        _draw(rows, share, path)


def table(rows: Sequence[LayerTime], width: int) -> list[str]:
    """A heading and a line per row, names ``width`` wide."""
    columns = f"{'dense ms':>9} {'ours ms':>9} {'speedup':>8} {'ceiling':>8} {'reached':>8}"
    heading = f"{'layer':{width}} {'active':>13} {columns}  path"
    return [heading, *(_line(row, width) for row in rows)]


def _line(row: LayerTime, width: int) -> str:
    name = row.name if len(row.name) <= width else "..." + row.name[3 - width :]
    of = f"{row.count}/{row.size}"
    return (
        f"{name:{width}} {of:>13} {row.dense_ms:9.3f} {row.ours_ms:9.3f} {row.speedup:7.2f}x "
        f"{row.dense_ms / row.ceiling_ms:7.2f}x {row.of_ceiling:8.0%}  {row.path}"
    )


def _draw(rows: Sequence[LayerTime], share: float, path: str | PathLike[str]) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot: expected matplotlib; pip install matplotlib") from error
    figure = Figure(figsize=(9, 1.5 + 0.22 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    dgrad = [min(row.dgrad_ms, row.ours_ms) for row in rows]
    wgrad = [row.ours_ms - below for row, below in zip(rows, dgrad, strict=True)]
    saved = [max(row.dense_ms - row.ours_ms, 0.0) for row in rows]
    axes.barh(places, dgrad, color="#4c72b0", label="dX")
    axes.barh(places, wgrad, left=dgrad, color="#dd8452", label="dW and bias")
    ours = [row.ours_ms for row in rows]
    axes.barh(places, saved, left=ours, color="#d9d9d9", label="saved")
    axes.set_yticks(places, [row.name for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("backward of the layer, ms per step")
    axes.set_title(f"{share:.0%} of the neurons active")
    axes.legend(loc="best", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
