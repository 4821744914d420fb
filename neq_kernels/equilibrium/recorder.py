"""Records what the measured layers put out during one pass over the probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from neq_kernels.layer import NEqLayer

from .memory import WEIGHTS, Kept, Store
from .similarity import Similarity

NOT_RUN = "did not run in the probe"
NOT_FINITE = "NaN or inf in its outputs"
NOT_EVERYWHERE = "could not be compared on every rank"


class LayerRecord:
    """One layer during one pass: its outputs, by batches and calls, against the last pass's.

    Attributes:
        outputs: what the next pass compares with; empty where the store keeps none.
        problem: why the layer cannot be compared with the last pass, or None.

    Args:
        layer: the layer.
        previous: its outputs in the last pass; None if there were none.
        similarity: a fresh accumulator.
        store: keeps the outputs.
    """

    def __init__(
        self, layer: NEqLayer, previous: list[Kept] | None, similarity: Similarity, store: Store
    ) -> None:
        self.problem: str | None = None
        self._layer = layer
        self._previous = previous
        self._similarity = similarity
        self._store = store
        self._outputs: list[Kept | None] = []
        self._sums: list[Tensor] = []
        self._elements = 0

    @property
    def outputs(self) -> list[Kept]:
        if self._store.level == WEIGHTS or not self.ran:
            return []
        return [kept for kept in self._outputs if kept is not None]

    @property
    def ran(self) -> bool:
        """Whether there were outputs, and all of them can be used."""
        return self._elements > 0 and self.problem != NOT_FINITE

    def add(self, output: Any) -> None:
        """Take in one call's output, before an in-place activation may overwrite it."""
        current, position = output.detach(), len(self._outputs)
        self._outputs.append(self._store.keep(current, self._axis(current)))
        self._note(current)
        if self._previous is not None and position < len(self._previous):
            kept = self._previous[position]
            if not self.problem and self._same_shape(kept.shape, current.shape):
                self._compare(kept.output(current.device), current)

    def _note(self, current: Tensor) -> None:
        self._elements += current.numel()
        self._sums.append(current.sum(dtype=torch.float64))  # far cheaper than isfinite

    def _same_shape(self, previous: torch.Size, current: torch.Size) -> bool:
        if previous != current:
            shapes = f"{list(previous)}, then {list(current)}"
            self.problem = f"output shape varies between passes: {shapes}"
        return previous == current

    def _compare(self, previous: Tensor, current: Tensor) -> None:
        self._similarity.update(previous, current, self._axis(current))

    def _calls(self) -> tuple[int, int]:
        """Of the last pass, and of this one."""
        return len(self._previous or ()), len(self._outputs)

    def result(self) -> Tensor:
        """One number that is finite if all outputs are, then the sums that similarity comes from if
        there was something to compare; fp64 `[0]`, `[1]` or `[1 + rows * C]`, where the outputs
        are.

        Left to the caller to fetch, of all layers together: every copy to the host waits for the
        device.
        """
        if not self._elements:
            self.problem = "had empty outputs" if self._outputs else NOT_RUN
            return torch.empty(0, dtype=torch.float64, device="cpu")
        largest = torch.stack(self._sums).abs().amax().view(1)  # NaN, if there is one
        if self._previous is None or self.problem:
            return largest
        before, now = self._calls()
        if before != now:
            self.problem = f"calls vary between passes: {before}, then {now}"
            return largest
        sums = self._similarity.sums()
        return largest if sums is None else torch.cat([largest, sums.flatten()])

    def summary(self, result: Tensor) -> Tensor:
        """`result()`, on the CPU, in a form to be summed up over processes: fp64
        `[2 + rows * C]`, how many could not compare, the number that is finite, the sums."""
        sums = self._similarity.rows * self._layer.size
        summary = torch.zeros(2 + sums, dtype=torch.float64)
        summary[1 : 1 + result.numel()] = result
        summary[0] = float(result.numel() <= 1)
        return summary

    def finish(self, summary: Tensor) -> Tensor | None:
        """The similarity to the last pass, fp64 `[C]` on the CPU; None if there was no last pass to
        compare with, or a `problem`.

        `summary` is what `summary()` gave, of all processes together.
        """
        if not summary.isfinite().all():
            self.problem = NOT_FINITE
            return None
        if summary[0] > 0:
            if self._previous is not None and self.problem is None:
                self.problem = NOT_EVERYWHERE
            return None
        return self._similarity.value(summary[2:].view(self._similarity.rows, -1))

    def _axis(self, output: Tensor) -> int:
        unbatched = isinstance(self._layer, nn.modules.conv._ConvNd) and (
            output.dim() == self._layer.weight.dim() - 1
        )
        return 0 if unbatched else self._layer.channel_axis


class PairedRecord(LayerRecord):
    """One layer, compared with itself in the network of the last pass, which runs each batch after
    the network of now.

    Args:
        known: whether the last pass had usable outputs.
    """

    def __init__(self, layer: NEqLayer, known: bool, similarity: Similarity, store: Store) -> None:
        super().__init__(layer, [] if known else None, similarity, store)
        self._batch: list[Tensor] = []
        self._then = False
        self._seen = [0, 0]

    def side(self, then: bool) -> None:
        """Whose outputs come next; between batches it is the turn of now."""
        self._then = then
        if not then:
            self._batch.clear()

    def add(self, output: Any) -> None:
        current = output.detach()
        self._seen[not self._then] += 1
        if not self._then:
            self._outputs.append(None)
            self._note(current)
            self._batch.append(current.clone())
        elif self._previous is not None and not self.problem and self._batch:
            now = self._batch.pop(0)
            if self._same_shape(current.shape, now.shape):
                self._compare(current, now)

    def _calls(self) -> tuple[int, int]:
        return self._seen[0], self._seen[1]


class HeadFinder:
    """Remembers the nn.Linear that ran last."""

    def __init__(self) -> None:
        self.name: str | None = None

    def hook(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, arguments: Any, output: Any) -> None:
            self.name = name

        return note


def recording(records: Mapping[str, LayerRecord], model: nn.Module) -> AbstractContextManager[Any]:
    """Hooks that feed every record with its layer's outputs while the context lasts."""
    stack = ExitStack()
    for name, record in records.items():
        hook = _feed(record)
        stack.enter_context(model.get_submodule(name).register_forward_hook(hook, prepend=True))
    return stack


def _feed(record: LayerRecord) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        record.add(output)

    return hook


def finding_head(finder: HeadFinder, model: nn.Module) -> AbstractContextManager[Any]:
    """Hooks that tell `finder` of every nn.Linear that runs while the context lasts."""
    stack = ExitStack()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            stack.enter_context(module.register_forward_hook(finder.hook(name), prepend=True))
    return stack
