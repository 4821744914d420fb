"""Milliseconds of a part of every step, without waiting for a GPU in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch


class Stopwatch:
    """``with watch: ...`` measures one step; ``milliseconds()`` is the median step.

    On a GPU, events time its own work. On a CPU ``clock`` does: seconds of the wall by default;
    ``time.thread_time``, the processor time of the one thread that computes, is the better choice
    on a machine with others on it.
    """

    def __init__(self, device: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.clock = device, clock
        self.past: list[float] = []
        self._begun: Any = None
        self._events: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self._begun = self._now()

    def __exit__(self, *_: object) -> None:
        now = self._now()
        if isinstance(now, float):
            self.past.append((now - self._begun) * 1e3)
        else:
            self._events.append((self._begun, now))

    def _now(self) -> Any:
        if not self.device.startswith("cuda"):
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def all(self) -> list[float]:
        """Milliseconds of every step so far; on a GPU, waits for the last."""
        if self._events:
            torch.cuda.synchronize(self.device)
            self.past += [begun.elapsed_time(ended) for begun, ended in self._events]
            self._events = []
        return self.past

    def milliseconds(self) -> float:
        return median(self.all())
