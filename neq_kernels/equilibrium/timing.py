"""A selector's predicted time beside the measured one."""

from __future__ import annotations

from typing import Any

from torch import nn

from neq_kernels.distributed import Peers

from .history import History
from .watch import BackwardWatch

BACKWARD_MS = "backward_ms"


class Timing:
    """Times the backward for a selector that predicts it, and tells it what came of it.

    Such a selector has `prediction`, of its last choice and None before it, and `measured(ms)`. For
    others nothing is timed.
    """

    def __init__(self, model: nn.Module, selector: Any, peers: Peers) -> None:
        self._selector, self._peers = selector, peers
        self._watch = BackwardWatch(model) if hasattr(selector, "measured") else None

    def ended(self, history: History) -> str:
        """An epoch has: note what its backward took, and tell the selector. Returns a line about
        it, or nothing.

        What the user has logged as backward_ms goes before the watch's own times; of several
        processes the slowest counts, for which the others wait.
        """
        if self._watch is None:
            return ""
        ms = history[-1].values.get(BACKWARD_MS) if len(history) else None
        if ms is None and len(history):
            ms = self._watch.milliseconds()
        self._watch.restart()
        slowest = max(self._peers.gather(-1 if ms is None else round(ms * 1e6)))
        if slowest <= 0:
            return ""
        # Alone, not rounded to nanoseconds.
        ms = ms if self._peers.size == 1 and ms is not None else slowest / 1e6
        history.log(**{BACKWARD_MS: ms})
        prediction = self._selector.prediction
        self._selector.measured(ms)
        if prediction is None:
            return f"backward of the last epoch: measured {ms:.3g} ms with all neurons active"
        return str(prediction.against(ms))

    def chosen(self, history: History) -> str:
        """The selector has chosen: note what it predicts. Returns its line, or nothing."""
        prediction = getattr(self._selector, "prediction", None)
        if prediction is None:
            return ""
        history.log(predicted_ms=prediction.ms)
        return str(prediction)
