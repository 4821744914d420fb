"""Selectors that do not look at velocities: baselines, and sets known beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from neq_kernels.active import ActiveSet

from .base import Scores, check_share

Masks = Mapping[str, Any]


class Random:
    """Freezes int((1 - keep) * C) neurons of every layer, drawn anew each time, uniformly and
    without replacement: the baseline of NEq (arXiv 2207.09455).

    Args:
        keep: share of active neurons, in (0, 1].
        seed: of the draws; the tracker's state goes on with them.

    Raises:
        ValueError: a share outside (0, 1].
    """

    def __init__(self, keep: float, *, seed: int = 0) -> None:
        self.keep = check_share("keep", keep)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        return {name: self._draw(layer.velocity.numel()) for name, layer in scores.items()}

    def _draw(self, size: int) -> Tensor:
        mask = torch.ones(size, dtype=torch.bool)
        # In this form, in floating point: so the published counts come out.
        frozen = int((1 - self.keep) * size)
        mask[torch.randperm(size, generator=self._generator)[:frozen]] = False
        return mask

    def settings(self) -> dict[str, Any]:
        return {"keep": self.keep}

    def state_dict(self) -> dict[str, Any]:
        return {"keep": self.keep, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.keep = check_share("keep", state["keep"])
        self._generator.set_state(state["generator"].cpu())

    def __repr__(self) -> str:
        return f"Random(keep={self.keep:g})"


class Fixed:
    """The same neurons after every update.

    Args:
        active: layer name -> `ActiveSet`, bool mask or channel numbers, as `set_active` takes
            them. Layers not named stay active.

    Raises:
        TypeError: not a mapping.
    """

    def __init__(self, active: Masks) -> None:
        if not isinstance(active, Mapping):
            raise TypeError(
                "active: expected a mapping from layer name to active neurons, got "
                f"{type(active).__name__}; neq.get_active(model) gives one"
            )
        self._active = dict(active)

    def __call__(self, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        return _masks(self._active, scores, "active")

    def first(self, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        return self(scores)

    def __repr__(self) -> str:
        return f"Fixed({len(self._active)} layers)"


class Replay:
    """The sets of an earlier run, update by update; the last ones from there on.

    With the sets of a run's end alone it is the subset that turned out to matter, trained from the
    start.

    Args:
        history: sets by layer name, one mapping per update, as `neq.get_active(model)` gave them
            after each. Layers not named stay active.

    Raises:
        ValueError: no mapping at all.
    """

    def __init__(self, history: Sequence[Masks]) -> None:
        self._history = [dict(sets) for sets in history]
        if not self._history:
            raise ValueError("history: expected the sets of at least one update, got none")

    def __call__(self, scores: Mapping[str, Scores]) -> dict[str, Tensor]:
        epoch = next(iter(scores.values())).epoch if scores else 1
        sets = self._history[min(epoch, len(self._history)) - 1]
        return _masks(sets, scores, f"history[{min(epoch, len(self._history)) - 1}]")

    def __repr__(self) -> str:
        return f"Replay({len(self._history)} updates)"


def _masks(given: Masks, scores: Mapping[str, Scores], argument: str) -> dict[str, Tensor]:
    sizes = {name: layer.velocity.numel() for name, layer in scores.items()}
    unknown = sorted(set(given) - set(sizes))
    if len(unknown) == len(given) and given:
        raise ValueError(
            f"{argument}: expected names of measured layers such as {next(iter(sizes), 'none')!r}, "
            f"got {unknown[:4]}; see neq.get_active(model)"
        )
    return {
        name: _mask(given[name], size, f"{argument}[{name!r}]")
        if name in given
        else torch.ones(size, dtype=torch.bool)
        for name, size in sizes.items()
    }


def _mask(active: Any, size: int, argument: str) -> Tensor:
    if isinstance(active, ActiveSet):
        mask = active.mask()
    elif isinstance(active, Tensor) and active.dtype == torch.bool:
        mask = active.cpu()
    else:
        mask = ActiveSet.from_index(torch.as_tensor(active), size).mask()
    if mask.shape != (size,):
        raise ValueError(f"{argument}: expected {size} neurons, got {mask.numel()}")
    return mask
