"""What an experiment is: its data, its model, and the settings it is trained with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from examples.experiments.loading import Data
from examples.experiments.metrics import IGNORED

Schedule = Callable[[Optimizer, int, int], LRScheduler]


def scores(output: Any) -> Tensor:
    """The class scores in what a model returned: torchvision's and transformers' ways, too."""
    if isinstance(output, dict) and "out" in output:
        return output["out"]
    return output if isinstance(output, Tensor) else output.logits


def cross_entropy(output: Any, target: Tensor) -> Tensor:
    return F.cross_entropy(scores(output).float(), target, ignore_index=IGNORED)


@dataclass(frozen=True)
class Recipe:
    """An experiment with the paper's settings as defaults.

    Attributes:
        data: loads it from the folder the user names.
        schedule: makes a scheduler that is stepped after every training step, from the optimizer,
            the steps per epoch and the epochs.
        metric: "top1" or "miou".
        epsilon, mu: of NEq.
        evaluation_batch: images per batch of the test set; 1 where their sizes differ.
        clip: bound of the gradients' norm, or None.
        budget_kinds: layers whose neurons compete for a budget of parameters.
    """

    name: str
    data: Callable[[Path], Data]
    model: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], Optimizer]
    schedule: Schedule
    epochs: int
    batch_size: int
    classes: int
    metric: str = "top1"
    epsilon: float = 1e-3
    mu: float = 0.5
    evaluation_batch: int = 256
    clip: float | None = None
    budget_kinds: tuple[str, ...] = ("Conv2d",)
    loss: Callable[[Any, Tensor], Tensor] = cross_entropy


def by_epoch(factor: Callable[[float, int], float]) -> Schedule:
    """A schedule from ``factor(epoch, epochs)``, epoch counted in fractions from 0."""

    def make(optimizer: Optimizer, steps: int, epochs: int) -> LRScheduler:
        return LambdaLR(optimizer, lambda step: factor(step / steps, epochs))

    return make


def tenths(*shares: float) -> Schedule:
    """The learning rate falls to a tenth after each of these shares of the epochs."""

    def factor(epoch: float, epochs: int) -> float:
        # In whole epochs, as MultiStepLR has it.
        return 0.1 ** sum(int(epoch) >= round(share * epochs) for share in shares)

    return by_epoch(factor)
