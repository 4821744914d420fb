"""What an update found, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from neq_kernels.layer import NEqLayer

from .measure import Finding, kind_of

MAX_ROWS = 40
LINE_WIDTH = 100
NAME_WIDTH = 48


@dataclass(frozen=True)
class LayerRow:
    """One measured layer: its neurons, how many are frozen now, and their mean |v_t|.

    `velocity` is None if the layer could not be compared with the last pass; then it is all active,
    and `reason` says why where that is unexpected.
    """

    name: str
    kind: str
    neurons: int
    frozen: int
    velocity: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Report:
    """What one `Equilibrium.update()` found and did; `str()` gives a table of at most 100 columns.

    Attributes:
        epoch: t; 0 for the pass before training, which only records.
        layers: a row per measured layer, in the order of the model.
        excluded: names of the converted layers that are not measured; update() leaves their sets
            alone.
        head: the excluded layer that was found as the model's last Linear, or None.
        warming_up: whether the warm-up still keeps everything active.
        seconds: time the update took.
        share: `seconds` as a share of the time since the end of the update before, or None for the
            first.
        remembered: what the next update compares with, and how large it is.
        note: what the selector has to say of its choice, such as the time it predicts.
    """

    epoch: int
    layers: tuple[LayerRow, ...]
    excluded: tuple[str, ...]
    head: str | None
    warming_up: bool
    seconds: float
    share: float | None
    remembered: str = ""
    note: str = ""

    @property
    def neurons(self) -> int:
        """Measured neurons."""
        return sum(row.neurons for row in self.layers)

    @property
    def frozen(self) -> int:
        """Measured neurons that are frozen now."""
        return sum(row.frozen for row in self.layers)

    @property
    def frozen_share(self) -> float:
        """Frozen neurons as a share of the measured ones, 0 to 1."""
        return self.frozen / self.neurons if self.neurons else 0.0

    def __str__(self) -> str:
        return self.table()

    def table(self, max_rows: int = MAX_ROWS) -> str:
        """The report as text; beyond `max_rows`, layers are summed up by how their names begin."""
        rows = summarise(self.layers, max_rows)
        width = min(NAME_WIDTH, max((len(row.name) for row in rows), default=0))
        lines = [
            self._title(),
            f"{'layer':{width}} {'kind':16} {'neurons':>8} {'frozen':>8} {'share':>7} mean |v|",
            *(_line(row, width) for row in rows),
            *_reasons(self.layers),
            *self._footer(),
        ]
        return "\n".join(lines)

    def _title(self) -> str:
        title = (
            f"Equilibrium at epoch {self.epoch}: {self.frozen} of {self.neurons} neurons frozen "
            f"({self.frozen_share:.1%})"
        )
        if self.epoch == 0:
            return title + ", recorded only"
        return title + (", warming up" if self.warming_up else "")

    def _footer(self) -> list[str]:
        lines = []
        if self.excluded:
            names = [n + " (the last Linear)" if n == self.head else n for n in self.excluded]
            lines.append(_shorten("Not measured: " + ", ".join(names)))
        spent = f"Probe: {self.seconds:.3g} s"
        if self.share is not None:
            spent += f", {self.share:.1%} of the time since the last update"
        if self.remembered:
            spent += f"; remembered: {self.remembered}"
        return [*lines, *([self.note] if self.note else []), spent]


def row(name: str, layer: NEqLayer, found: Finding) -> LayerRow:
    """The row of one layer, after its active set was chosen."""
    velocity = found.track["velocity"].abs().mean().item() if found.track else None
    return LayerRow(
        name=name,
        kind=kind_of(layer),
        neurons=layer.size,
        frozen=layer.size - layer.active.count,
        velocity=velocity,
        reason=found.problem,
    )


def summarise(rows: tuple[LayerRow, ...], max_rows: int) -> list[LayerRow]:
    """The rows if they are few enough, else sums over the longest name beginnings that are."""
    if len(rows) <= max_rows:
        return list(rows)
    deepest = max(row.name.count(".") for row in rows)
    for depth in range(deepest, 0, -1):
        groups = _grouped(rows, depth)
        if len(groups) <= max_rows:
            return groups
    return [_sum("all", list(rows))]


def _grouped(rows: tuple[LayerRow, ...], depth: int) -> list[LayerRow]:
    """One row per beginning of `depth` components, and per kind of layer under it."""
    groups: dict[tuple[str, str], list[LayerRow]] = defaultdict(list)
    for row in rows:
        groups[".".join(row.name.split(".")[:depth]), row.kind].append(row)
    return [
        _sum(f"{name}.*", members) if len(members) > 1 else members[0]
        for (name, _), members in groups.items()
    ]


def _sum(name: str, rows: list[LayerRow]) -> LayerRow:
    kinds = {row.kind for row in rows}
    kind = kinds.pop() if len(kinds) == 1 else "layers"
    measured = [(row.velocity, row.neurons) for row in rows if row.velocity is not None]
    weight = sum(neurons for _, neurons in measured)
    return LayerRow(
        name=name,
        kind=f"{len(rows)} {kind}",
        neurons=sum(row.neurons for row in rows),
        frozen=sum(row.frozen for row in rows),
        velocity=sum(v * neurons for v, neurons in measured) / weight if weight else None,
    )


def _line(row: LayerRow, width: int) -> str:
    velocity = "-" if row.velocity is None else f"{row.velocity:.2e}"
    share = f"{row.frozen / row.neurons:.1%}"
    # Of a long name, the end tells more.
    name = row.name if len(row.name) <= width else "..." + row.name[3 - width :]
    return f"{name:{width}} {row.kind:16} {row.neurons:8} {row.frozen:8} {share:>7} {velocity}"


def _reasons(rows: tuple[LayerRow, ...]) -> list[str]:
    """Why layers are active regardless, layers of one reason together."""
    names: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.reason:
            names[row.reason].append(row.name)
    return [_shorten(f"Active, {reason}: {', '.join(layers)}") for reason, layers in names.items()]


def _shorten(line: str) -> str:
    return line if len(line) <= LINE_WIDTH else line[: LINE_WIDTH - 3] + "..."
