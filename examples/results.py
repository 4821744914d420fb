"""What a run leaves behind: its rows as CSV, and the figures that sum them up."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from examples.training import Row

COLUMNS = (
    "epoch", "frozen_share", "active_wgrad_share", "dense_loss", "neq_loss", "dense_accuracy",
    "neq_accuracy", "dense_backward_ms", "neq_backward_ms", "ceiling_backward_ms", "dense_step_ms",
    "neq_step_ms", "probe_s",
)  # fmt: skip


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line per epoch; shares and accuracies are 0 to 1, times per step."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            dense, ours = row.dense, row.neq
            values = (
                row.frozen, row.wgrad, dense.loss, ours.loss, dense.accuracy, ours.accuracy,
                dense.backward_ms, ours.backward_ms, row.ceiling_ms, dense.step_ms, ours.step_ms,
                row.probe_s,
            )  # fmt: skip
            writer.writerow([row.epoch, *(f"{value:.6g}" for value in values)])


@dataclass(frozen=True)
class Backward:
    """Mean backward milliseconds per step over some epochs."""

    dense: float
    neq: float
    ceiling: float

    @classmethod
    def over(cls, rows: Sequence[Row]) -> Backward:
        return cls(
            mean(row.dense.backward_ms for row in rows),
            mean(row.neq.backward_ms for row in rows),
            mean(row.ceiling_ms for row in rows),
        )

    def __str__(self) -> str:
        return (
            f"dense {self.dense:.1f} ms, NEq {self.neq:.1f} ms: {self.dense / self.neq:.2f}x "
            f"(ceiling {self.dense / self.ceiling:.2f}x, {self.ceiling / self.neq:.0%} reached)"
        )


def last_epochs(rows: Sequence[Row]) -> Sequence[Row]:
    """The last quarter of a run."""
    return rows[-max(1, len(rows) // 4) :]


def summary(rows: Sequence[Row]) -> str:
    """The run in a few lines."""
    final, last = rows[-1], last_epochs(rows)
    partly = [row for row in rows if 0 < row.frozen < 1]
    dense, ours = final.dense.accuracy, final.neq.accuracy
    lines = [
        f"Test accuracy    dense {dense:.2%}, NEq {ours:.2%} ({100 * (ours - dense):+.2f} points)",
        f"Frozen           {final.frozen:.1%} of the watched neurons in the last epoch",
        f"Backward a step  all {len(rows)} epochs: {Backward.over(rows)}",
        f"                 last {len(last)} epochs: {Backward.over(last)}",
    ]
    if partly:
        lines.append(
            f"                 {len(partly)} epochs partly frozen: {Backward.over(partly)}"
        )
    lines.append(
        f"Training step    dense {mean(row.dense.step_ms for row in rows):.1f} ms, "
        f"NEq {mean(row.neq.step_ms for row in rows):.1f} ms in the mean; "
        f"probe {mean(row.probe_s for row in rows):.2f} s an epoch"
    )
    return "\n".join(lines)
