"""NEq on ImageNet, ResNet-18: ``python -m examples.experiments.imagenet --data FOLDER``.

FOLDER holds train/<class>/*.JPEG and val/<class>/*.JPEG.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from examples.experiments.cli import main
from examples.experiments.images import ImageFolder
from examples.experiments.loading import Data, hold_out
from examples.experiments.recipe import Recipe, by_epoch

PROBE_SHARE = 0.001
CLASSES = 1000


def data(folder: Path) -> Data:
    everything = ImageFolder.of(folder / "train")
    train, probe = hold_out(everything, max(1, int(PROBE_SHARE * len(everything))))
    return Data(train, ImageFolder.of(folder / "val"), probe)


def resnet18() -> nn.Module:
    """As He et al. (2016): transformers' ResNet of that shape, with random weights."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512],
        num_labels=CLASSES,
    )  # fmt: skip
    return ResNetForImageClassification(config)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)


RECIPE = Recipe(
    name="imagenet-resnet18",
    data=data,
    model=resnet18,
    optimizer=optimizer,
    schedule=by_epoch(lambda epoch, epochs: 0.1 ** (int(epoch) // 30)),
    epochs=90,
    batch_size=256,
    classes=CLASSES,
    epsilon=1e-3,
)

if __name__ == "__main__":
    main(RECIPE)
