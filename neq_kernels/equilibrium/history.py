"""What a tracker found, epoch by epoch, and what its user noted beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from neq_kernels.active import ActiveSet

from .epoch import EDGES, Epoch
from .picture import draw
from .report import LayerRow, Report


class History(Sequence[Epoch]):
    """The updates of a tracker, oldest first; a sequence of `Epoch`."""

    def __init__(self) -> None:
        self._epochs: list[Epoch] = []

    def __len__(self) -> int:
        return len(self._epochs)

    def __getitem__(self, place: Any) -> Any:
        return self._epochs[place]

    def __repr__(self) -> str:
        return f"History({len(self)} updates)"

    def add(
        self,
        report: Report,
        sets: Mapping[str, ActiveSet],
        velocities: Sequence[Tensor],
        epsilon: float | None,
    ) -> None:
        """Take in an update: its report, the sets of its layers, and all |v| or v there are."""
        masks = [sets[row.name].mask() for row in report.layers]
        v = torch.cat([torch.empty(0, dtype=torch.float64), *velocities]).abs()
        self._epochs.append(
            Epoch(
                report.epoch,
                report.layers,
                torch.cat([torch.empty(0, dtype=torch.bool), *masks]),
                torch.bucketize(v, EDGES, right=True).bincount(minlength=len(EDGES) + 1),
                epsilon,
                report.seconds,
                report.share,
            )
        )

    def log(self, **values: float) -> None:
        """Note numbers beside the last update, such as ``accuracy`` or ``backward_ms``.

        Raises:
            RuntimeError: there was no update yet.
            TypeError: something that is not a number.
        """
        if not self._epochs:
            raise RuntimeError("log: expected an update before it, got none; call update() first")
        numbers = {}
        for name, value in values.items():
            try:
                numbers[name] = float(value)
            except (TypeError, ValueError) as error:
                got = type(value).__name__
                raise TypeError(f"log: expected a number as {name}, got {got}") from error
        self._epochs[-1].values.update(numbers)

    @property
    def chosen(self) -> list[dict[str, ActiveSet]]:
        """The sets that each update after training has chosen: what `selectors.Replay` takes."""
        return [epoch.sets() for epoch in self._epochs if epoch.epoch > 0]

    @property
    def trained(self) -> list[dict[str, ActiveSet]]:
        """The sets that each finished epoch has trained: what `neq.flops(history=...)` takes."""
        return [epoch.sets() for epoch in self._epochs[:-1]]

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw into a picture file: the frozen share of every layer and epoch, the velocities of
        the last update with epsilon, and what was noted with `log`.

        Raises:
            ValueError: nothing was compared yet.
            ImportError: matplotlib is not installed.
        """
        draw(self, path)

    def state_dict(self) -> list[dict[str, Any]]:
        """Plain values and tensors."""
        return [
            {
                **vars(epoch),
                "layers": [list(vars(row).values()) for row in epoch.layers],
                "values": dict(epoch.values),
            }
            for epoch in self._epochs
        ]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Go on from `state`."""
        self._epochs = [
            Epoch(**{**e, "layers": tuple(LayerRow(*row) for row in e["layers"])}) for e in state
        ]
        for epoch in self._epochs:
            epoch.values = dict(epoch.values)
