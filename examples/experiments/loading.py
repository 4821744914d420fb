"""Batches that depend on seed, epoch and step alone, so that a resumed run sees the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

Sample = tuple[Tensor, Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]


class Samples(Protocol):
    """A data set. ``sample(i, generator)`` is image and target of number ``i``: augmented with
    draws from ``generator``, or, where that is None, as for evaluation.
    """

    def __len__(self) -> int: ...

    def sample(self, index: int, generator: Generator | None) -> Sample: ...


@dataclass(frozen=True)
class Data:
    """``probe`` was held out from the training images, and is never trained on."""

    train: Samples
    test: Samples
    probe: Samples


@dataclass(frozen=True)
class TensorSamples:
    """Images ``[N, C, H, W]`` and labels ``[N]`` in memory."""

    images: Tensor
    labels: Tensor
    augment: Callable[[Tensor, Generator], Tensor] = lambda image, generator: image

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, index: int, generator: Generator | None) -> Sample:
        image = self.images[index]
        return image if generator is None else self.augment(image, generator), self.labels[index]


@dataclass(frozen=True)
class Subset:
    """The samples numbered ``members``."""

    samples: Samples
    members: Sequence[int]

    def __len__(self) -> int:
        return len(self.members)

    def sample(self, index: int, generator: Generator | None) -> Sample:
        return self.samples.sample(self.members[index], generator)


def hold_out(samples: Samples, count: int, seed: int = 0) -> tuple[Subset, Subset]:
    """All samples but ``count``, and those: the probe, the same for every training seed."""
    if not 0 < count < len(samples):
        raise ValueError(
            f"count: expected fewer probe images than the {len(samples)} training images, and at "
            f"least one, got {count}"
        )
    order = torch.randperm(len(samples), generator=Generator().manual_seed(seed)).tolist()
    return Subset(samples, sorted(order[count:])), Subset(samples, sorted(order[:count]))


class _Ordered(Dataset[Sample]):
    """Samples in a given order, each augmented by draws of its own."""

    def __init__(self, samples: Samples, order: Sequence[int], seed: int | None) -> None:
        self.samples, self.order, self.seed = samples, order, seed

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> Sample:
        index = self.order[place]
        if self.seed is None:
            return self.samples.sample(index, None)
        # Draws that depend on the image, not on the worker that loads it or on those before.
        return self.samples.sample(index, Generator().manual_seed(self.seed * 10_000_019 + index))


def training_batches(
    samples: Samples, size: int, *, seed: int, epoch: int, first_step: int = 0, workers: int = 0
) -> Batches:
    """The shuffled batches of one epoch from ``first_step`` on; an incomplete last one is left out
    unless it is the only one.
    """
    epoch_seed = seed * 10_007 + epoch
    generator = Generator().manual_seed(epoch_seed)
    order = torch.randperm(len(samples), generator=generator).tolist()
    order = order[: steps_per_epoch(samples, size) * size]
    ordered = _Ordered(samples, order[first_step * size :], epoch_seed)
    return DataLoader(ordered, size, num_workers=workers, generator=generator)


def steps_per_epoch(samples: Samples, size: int) -> int:
    return max(1, len(samples) // size)


def evaluation_batches(samples: Samples, size: int, workers: int = 0) -> Batches:
    """Every sample once, in order, without augmentation."""
    # A generator of its own: drawing the workers' seeds would move torch's.
    ordered, generator = _Ordered(samples, range(len(samples)), None), Generator()
    return DataLoader(ordered, size, num_workers=workers, generator=generator)
