"""scikit-learn's 1,797 handwritten digits as 32x32 images, split for training with a probe set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

TEST_IMAGES = 360
PROBE_IMAGES = 50
SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Images ``[N, 3, 32, 32]`` (three equal channels) and labels ``[N]`` on the training device.

    ``probe`` was split off the training images and is never trained on.
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    probe: Tensor
    memory_format: torch.memory_format

    def batches(self, size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The shuffled batches of one epoch: the same for everyone who asks with this seed."""
        generator = torch.Generator().manual_seed(seed * 10_007 + epoch)
        order = torch.randperm(len(self.labels), generator=generator).to(self.labels.device)
        for chosen in order.split(size):
            images = self.images[chosen].contiguous(memory_format=self.memory_format)
            yield images, self.labels[chosen]


def load(
    device: str,
    memory_format: torch.memory_format = torch.contiguous_format,
    train_images: int | None = None,
) -> Digits:
    """The digits, upscaled from 8x8 bilinearly and normalised by the training images.

    The split is stratified and does not depend on the training seed, so that runs with different
    seeds are judged on the same images. ``train_images`` keeps only the first so many.
    """
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None]
    images = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(data.target)
    rest, test = _split(range(len(labels)), labels, TEST_IMAGES)
    train, probe = _split(rest, labels, PROBE_IMAGES)
    images = ((images - images[train].mean()) / images[train].std()).expand(-1, 3, -1, -1)

    def place(chosen: Sequence[int]) -> Tensor:
        return images[chosen].to(device).contiguous(memory_format=memory_format)

    train = train[:train_images]
    return Digits(
        images=place(train),
        labels=labels[train].to(device),
        test_images=place(test),
        test_labels=labels[test].to(device),
        probe=place(probe),
        memory_format=memory_format,
    )


def _split(members: Sequence[int], labels: Tensor, held_out: int) -> tuple[list[int], list[int]]:
    stratify = labels[list(members)]
    kept, out = train_test_split(
        list(members), test_size=held_out, stratify=stratify, random_state=SPLIT_SEED
    )
    return kept, out
