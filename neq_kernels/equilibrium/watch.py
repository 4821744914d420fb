"""How long the backward of a model in training takes, seen from inside."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils._pytree import tree_leaves

# The first steps after a choice are not typical: ways are raced, kernels made, memory claimed.
SKIPPED = 3
MOST = 100


class BackwardWatch:
    """Times the backward of every training step of `model`, from the gradient's arrival at its
    outputs to the end: of up to 100 steps since the last `restart()`, without waiting for a GPU.

    Backwards through graphs made without the model's own forward, or inside a compiled one, are
    not seen. Where `model` is compiled or wrapped, give the wrapper.

    Args:
        clock: reads seconds on a CPU; a GPU's events time its own work.
    """

    def __init__(self, model: nn.Module, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._begun: Any = None
        self._device = torch.device("cpu")
        self.restart()
        handle = model.register_forward_hook(_Forward(self))
        # The model outlives its tracker, and shall be as before then.
        weakref.finalize(self, handle.remove)

    def restart(self) -> None:
        """Forget all steps."""
        self._seen = 0
        self._spans: list[tuple[Any, Any]] = []

    def milliseconds(self) -> float | None:
        """The median step since `restart()`; None if there were too few. On a GPU, waits for it."""
        if not self._spans:
            return None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return median(begun.elapsed_time(ended) for begun, ended in self._spans)
        return median(ended - begun for begun, ended in self._spans) * 1e3

    def expect(self, outputs: Any) -> None:
        """A forward has put out `outputs`: their gradients begin the backward."""
        self._begun = None
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(self._arrived)

    def _arrived(self, gradient: Tensor) -> None:
        if self._begun is None and self._seen < SKIPPED + MOST:
            self._device = gradient.device
            self._begun = self._now()
            Variable._execution_engine.queue_callback(self._ended)

    def _ended(self) -> None:
        begun, self._begun = self._begun, None
        self._seen += 1
        if begun is not None and self._seen > SKIPPED:
            self._spans.append((begun, self._now()))

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


class _Forward:
    """The hook. Copies and pickles of the model, such as an average of its weights, do without."""

    def __init__(self, watch: BackwardWatch | None) -> None:
        self._watch = None if watch is None else weakref.ref(watch)

    def __call__(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if torch.compiler.is_compiling() or not (module.training and torch.is_grad_enabled()):
            return
        watch = None if self._watch is None else self._watch()
        if watch is not None:
            watch.expect(outputs)

    def __reduce__(self) -> Any:
        return _Forward, (None,)
