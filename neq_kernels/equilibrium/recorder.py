"""Records what the measured layers put out during one pass over the probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from neq_kernels.layer import NEqLayer

from .similarity import Similarity

NOT_RUN = "did not run in the probe"
NOT_FINITE = "NaN or inf in its outputs"


class LayerRecord:
    """One layer during one pass: its outputs, by batches and calls, against the last pass's.

    Attributes:
        outputs: what the next pass compares with, copied in the layer's own dtype, so without loss.
        problem: why the layer cannot be compared with the last pass, or None.
    """

    def __init__(
        self, layer: NEqLayer, previous: list[Tensor] | None, similarity: Similarity
    ) -> None:
        self.outputs: list[Tensor] = []
        self.problem: str | None = None
        self._layer = layer
        self._previous = previous
        self._similarity = similarity
        self._sums: list[Tensor] = []

    def add(self, output: Any) -> None:
        """Take in one call's output: a copy, as an in-place activation may overwrite it next."""
        current = output.detach().clone()
        position = len(self.outputs)
        self.outputs.append(current)
        self._sums.append(current.sum(dtype=torch.float64))  # far cheaper than isfinite
        if self._previous is None or self.problem or position >= len(self._previous):
            return
        previous = self._previous[position]
        if current.shape != previous.shape:
            shapes = f"{list(previous.shape)}, then {list(current.shape)}"
            self.problem = f"output shape varies between passes: {shapes}"
        else:
            self._similarity.update(previous.to(current.device), current, self._axis(current))

    def result(self) -> Tensor:
        """What `finish` has to know on the host: one number that is finite if all outputs are, then
        the similarity to the last pass if there was one; fp64 `[0]`, `[1]` or `[1 + C]`, where the
        outputs are.

        Left to the caller to fetch, of all layers together: every copy to the host waits for the
        device.
        """
        if not any(output.numel() for output in self.outputs):
            self.problem = NOT_RUN if not self.outputs else "had empty outputs"
            self.outputs = []
            return torch.empty(0, dtype=torch.float64, device="cpu")
        largest = torch.stack(self._sums).abs().amax().view(1)  # NaN, if there is one
        if self._previous is None or self.problem:
            return largest
        calls = len(self._previous), len(self.outputs)
        if calls[0] != calls[1]:
            self.problem = f"calls vary between passes: {calls[0]}, then {calls[1]}"
            return largest
        return torch.cat([largest, self._similarity.value()])

    def finish(self, result: Tensor) -> Tensor | None:
        """The similarity to the last pass, fp64 `[C]` on the CPU; None if there was no last pass to
        compare with, or a `problem`.

        `result` is what `result()` gave, on the CPU.
        """
        if not result.isfinite().all():
            self.problem, self.outputs = NOT_FINITE, []
            return None
        return result[1:].clone() if result.numel() > 1 else None

    def _axis(self, output: Tensor) -> int:
        unbatched = isinstance(self._layer, nn.modules.conv._ConvNd) and (
            output.dim() == self._layer.weight.dim() - 1
        )
        return 0 if unbatched else self._layer.channel_axis


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
        stack.enter_context(model.get_submodule(name).register_forward_hook(hook))
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
            stack.enter_context(module.register_forward_hook(finder.hook(name)))
    return stack
