"""Training LeNet-5 and ResNet-32 on some of the digits' classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.digits import Digits
from examples.lenet import LeNet5
from examples.resnet import resnet32

NETWORKS: dict[str, Callable[[int], nn.Module]] = {"LeNet-5": LeNet5, "ResNet-32": resnet32}


@dataclass(frozen=True)
class Settings:
    """``dense`` epochs train the network, ``epochs`` prune it gradually, or ``tune`` epochs
    fine-tune it after each one-shot amount; ``move`` epochs fine-tune it on other classes."""

    network: str = "LeNet-5"
    dense: int = 20
    epochs: int = 60
    tune: int = 25
    move: int = 20
    tolerance: float = 0.2
    strength: float = 1e-3
    size: int = 32
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
    def of(cls, digits: Digits, classes: range, size: int = 32) -> Split:
        """A fifth of the training images validates; ``size`` is that of the images in pixels."""

        def of_classes(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            chosen = (labels >= classes.start) & (labels < classes.stop)
            small = F.interpolate(images[chosen], size=(size, size), mode="area")
            return small, labels[chosen] - classes.start

        images, labels = of_classes(digits.images, digits.labels)
        kept = len(labels) - max(1, len(labels) // 5)
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
def judged(model: nn.Module, data: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """The mean loss, and the share of the images classified rightly."""
    model.eval()
    images, labels = data
    scores = model(images)
    right = (scores.argmax(1) == labels).float().mean().item()
    return F.cross_entropy(scores, labels).item(), right
