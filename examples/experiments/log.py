"""What a run writes while it goes on: a CSV file, and TensorBoard's events if asked to."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

Row = Mapping[str, float]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """All rows, one per epoch; the file is replaced as a whole, never half written."""
    fresh = path.with_suffix(".writing")
    with fresh.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: f"{value:.8g}" for name, value in row.items()} for row in rows)
    fresh.replace(path)


class TensorBoard:
    """Writes rows as events into a folder; ``wanted=False`` writes nothing.

    Raises:
        ModuleNotFoundError: it is wanted and not installed.
    """

    def __init__(self, folder: Path, wanted: bool, first_epoch: int) -> None:
        self._writer = None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ModuleNotFoundError(
                "--tensorboard: expected tensorboard to be installed; pip install tensorboard"
            ) from error
        # What a killed run wrote about this epoch and later ones is void.
        self._writer = SummaryWriter(str(folder), purge_step=first_epoch)

    def add(self, row: Row) -> None:
        if self._writer is None:
            return
        for name, value in row.items():
            self._writer.add_scalar(name, value, int(row["epoch"]))
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
