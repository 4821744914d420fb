"""NEq fine-tuning Swin-B from ImageNet-22k to -1k:
``python -m examples.experiments.swin --data FOLDER``.

FOLDER holds train/<class>/*.JPEG and val/<class>/*.JPEG. The network is transformers', which calls
its Linear layers; torchvision's reads their weights behind their backs, so that none can freeze.
Of the original fine-tuning's augmentations only crops and flips are here, not RandAugment, mixup,
CutMix and erasing.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from examples.experiments.cli import main
from examples.experiments.imagenet import CLASSES, PROBE_SHARE
from examples.experiments.images import BICUBIC, ImageFolder
from examples.experiments.loading import Data, hold_out
from examples.experiments.recipe import Recipe, by_epoch

PRETRAINED = "microsoft/swin-base-patch4-window7-224-in22k"
WARMUP_EPOCHS = 5


def data(folder: Path) -> Data:
    everything = ImageFolder.of(folder / "train", resample=BICUBIC)
    train, probe = hold_out(everything, max(1, int(PROBE_SHARE * len(everything))))
    return Data(train, ImageFolder.of(folder / "val", resample=BICUBIC), probe)


def swin_b() -> nn.Module:
    """With the weights of ImageNet-22k, and a new head."""
    from transformers import SwinForImageClassification

    return SwinForImageClassification.from_pretrained(
        PRETRAINED, num_labels=CLASSES, ignore_mismatched_sizes=True, drop_path_rate=0.2
    )


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 2e-5, weight_decay=1e-8)


def warmup_then_cosine(epoch: float, epochs: int) -> float:
    """From 1/1000 up to 1 over five epochs, then along a cosine down to 1/100."""
    warmup = min(WARMUP_EPOCHS, epochs / 2)
    if epoch < warmup:
        return 1e-3 + (1 - 1e-3) * epoch / warmup
    done = (epoch - warmup) / (epochs - warmup)
    return 0.01 + (1 - 0.01) * (1 + math.cos(math.pi * min(done, 1))) / 2


RECIPE = Recipe(
    name="imagenet-swin-b",
    data=data,
    model=swin_b,
    optimizer=optimizer,
    schedule=by_epoch(warmup_then_cosine),
    epochs=30,
    batch_size=128,
    classes=CLASSES,
    epsilon=1e-3,
    clip=5.0,
    budget_kinds=("Linear",),
)

if __name__ == "__main__":
    main(RECIPE)
