"""Timing one turn without waiting for the device: what counts is the larger of host and device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

Report = Callable[[float], None]


class Settled:
    """The path of a decided geometry: nothing is timed."""

    __slots__ = ("path", "why")

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        self.why = why

    def stop(self) -> None:
        """Called when the gradients have been asked for."""


class Clock(Settled):
    """One turn, from its making to :meth:`stop`; ``report`` gets its milliseconds, on a device only
    once it is done there, which a later turn finds out."""

    __slots__ = ("_begun", "_events", "_report")

    def __init__(self, path: str, why: str, device: str, report: Report) -> None:
        super().__init__(path, why)
        self._report = report
        self._events: Any = None
        collect()
        if device == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._events[0].record()
        self._begun = time.perf_counter()

    def stop(self) -> None:
        host = (time.perf_counter() - self._begun) * 1e3
        if self._events is None:
            self._report(host)
            return
        self._events[1].record()
        _running.append((self._events, host, self._report))


_running: deque[tuple[Any, float, Report]] = deque()


def collect() -> None:
    """Report the turns that the device has finished, in their order."""
    while _running and _running[0][0][1].query():
        (begin, end), host, report = _running.popleft()
        report(max(host, begin.elapsed_time(end)))
