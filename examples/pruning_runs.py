"""Four ways to prune a network, and what is left of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.digits import Digits
from examples.lenet import LeNet5
from examples.resnet import resnet32
from neq_kernels import pruning

NETWORKS: dict[str, Callable[[int], nn.Module]] = {"LeNet-5": LeNet5, "ResNet-32": resnet32}
METHODS = "one-shot", "gradual", "SeReNe", "LOBSTER"
AMOUNTS = 0.5, 0.7, 0.8, 0.9, 0.95, 0.98
STRENGTH = 1e-3
TOLERANCE = 0.2
# Validation accuracy a pruned network may lose to count as of equal error.
MARGIN = 0.01


@dataclass(frozen=True)
class Settings:
    """``dense`` epochs train the network, ``epochs`` prune it, or fine-tune it per amount."""

    network: str = "LeNet-5"
    dense: int = 15
    epochs: int = 30
    tune: int = 4
    batch_size: int = 64
    rate: float = 0.02
    seed: int = 1


@dataclass(frozen=True)
class Split:
    """Images and labels of some classes, renumbered from 0, to train, validate and test on."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int

    @classmethod
    def of(cls, digits: Digits, classes: range) -> Split:
        """A tenth of the training images validates."""

        def of_classes(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            chosen = (labels >= classes.start) & (labels < classes.stop)
            return images[chosen], labels[chosen] - classes.start

        images, labels = of_classes(digits.images, digits.labels)
        kept = len(labels) - max(1, len(labels) // 10)
        return cls(
            (images[:kept], labels[:kept]),
            (images[kept:], labels[kept:]),
            of_classes(digits.test_images, digits.test_labels),
            len(classes),
        )

    def batches(self, size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The shuffled training batches of one epoch; a last one of a single image is left out."""
        generator = torch.Generator().manual_seed(seed * 10_007 + epoch)
        images, labels = self.train
        for chosen in torch.randperm(len(labels), generator=generator).split(size):
            if len(chosen) > 1:
                yield images[chosen], labels[chosen]


@dataclass(frozen=True)
class Point:
    """A pruned network on the way: shares of parameters and neurons gone, and test error."""

    method: str
    seed: int
    zeroed: float
    removed: float
    error: float


class Pruning:
    """One network under one method; ``points`` are on the way, ``model`` is the best at the end:
    the most pruned one whose validation accuracy is within MARGIN of the dense network's."""

    def __init__(self, method: str, dense: nn.Module, settings: Settings, data: Split) -> None:
        self.method, self.settings, self.data = method, settings, data
        self.points: list[Point] = []
        self.model = copy.deepcopy(dense)
        self._floor = accuracy(dense, data.validation) - MARGIN
        self._zeroed = pruning.share_zeroed(dense)
        if method == "one-shot":
            self._one_shot(dense)
        else:
            self._gradual(copy.deepcopy(dense))

    def _one_shot(self, dense: nn.Module) -> None:
        """A fresh start from the dense network for every amount."""
        for amount in AMOUNTS:
            model, optimizer = self._start(copy.deepcopy(dense))
            schedule = pruning.OneShot(amount, patience=1, slack=-1 + 1e-9)
            # The network is trained: it is pruned at once.
            schedule.update(model, self._loss, optimizer)
            if not schedule.prunings:
                schedule.update(model, self._loss, optimizer)
            for epoch in range(self.settings.tune):
                train_epoch(model, optimizer, self._batches(epoch), partial(schedule.step, model))
            self._note(model)

    def _gradual(self, model: nn.Module) -> None:
        model, optimizer = self._start(model)
        schedule = pruning.Gradual(
            TOLERANCE, patience=1, slack=-0.02, weights_only=self.method == "SeReNe"
        )
        with ExitStack() as stack:
            step: Callable[[], None] = lambda: schedule.step(model)  # noqa: E731
            if self.method == "SeReNe":
                step = stack.enter_context(pruning.SeReNe(model, STRENGTH, "lower_bound")).step
            elif self.method == "LOBSTER":
                step = stack.enter_context(pruning.LOBSTER(model, STRENGTH)).step
            for epoch in range(self.settings.epochs):
                train_epoch(model, optimizer, self._batches(epoch), step)
                schedule.update(model, self._loss, optimizer)
                self._note(model)
                if schedule.finished:
                    break

    def _start(self, model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
        return model, torch.optim.SGD(model.parameters(), self.settings.rate, momentum=0.9)

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        s = self.settings
        return self.data.batches(s.batch_size, s.seed, s.dense + epoch)

    def _loss(self, model: nn.Module) -> float:
        images, labels = self.data.validation
        return F.cross_entropy(model(images), labels).item()

    def _note(self, model: nn.Module) -> None:
        zeroed = pruning.share_zeroed(model)
        error = 1 - accuracy(model, self.data.test)
        removed = pruning.share_removed(model)
        self.points.append(Point(self.method, self.settings.seed, zeroed, removed, error))
        if zeroed > self._zeroed and accuracy(model, self.data.validation) >= self._floor:
            self._zeroed = zeroed
            self.model = copy.deepcopy(model)


def train_dense(settings: Settings, data: Split) -> nn.Module:
    """The network every method starts from."""
    torch.manual_seed(settings.seed)
    model = NETWORKS[settings.network](data.classes)
    optimizer = torch.optim.SGD(model.parameters(), settings.rate, momentum=0.9)
    for epoch in range(settings.dense):
        train_epoch(model, optimizer, data.batches(settings.batch_size, settings.seed, epoch))
    return model


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Tensor, Tensor]],
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """One epoch; ``after_step`` follows each step of the optimizer."""
    model.train()
    for images, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        after_step()


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of the images classified rightly."""
    model.eval()
    images, labels = data
    return (model(images).argmax(1) == labels).float().mean().item()


def transfer(model: nn.Module, settings: Settings, data: Split) -> tuple[float, float]:
    """Test accuracy on other classes: with a new head alone trained, and with all of it."""
    found = []
    for everything in (False, True):
        torch.manual_seed(settings.seed)
        other = copy.deepcopy(model)
        other.fc = nn.Linear(other.fc.in_features, data.classes)
        trained = list((other if everything else other.fc).parameters())
        optimizer = torch.optim.SGD(trained, settings.rate, momentum=0.9)
        # What is pruned stays so; the new head has no mask.
        masks = pruning.get_masks(other)
        for epoch in range(settings.tune):
            batches = data.batches(settings.batch_size, settings.seed, epoch)
            if everything and masks:
                train_epoch(other, optimizer, batches, partial(pruning.apply_masks, other))
            else:
                train_epoch(other, optimizer, batches)
        found.append(accuracy(other, data.test))
    return found[0], found[1]
