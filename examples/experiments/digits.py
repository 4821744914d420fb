"""scikit-learn's digits, with ResNet-32 or a small vision transformer, SGD or AdamW."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from examples import digits
from examples.experiments.loading import Data, TensorSamples
from examples.experiments.recipe import Recipe, tenths
from examples.resnet import resnet32

# Pixels along a side; the scans themselves have 8.
SIZES = {"resnet": 8, "vit": 16}
EPOCHS = {"resnet": 16, "vit": 10}
# With 128 images a step, SGD leaves the transformer near chance.
BATCHES = {"resnet": 128, "vit": 32}
LEARNING_RATES = {
    ("resnet", "sgd"): 0.1,
    ("resnet", "adamw"): 2e-3,
    ("vit", "sgd"): 0.05,
    ("vit", "adamw"): 1e-3,
}


def small_vit() -> nn.Module:
    """Two layers, 96 wide, 4 heads, over 16 patches of 4x4 pixels: transformers' ViT.

    Weights start larger than ViT's own 0.02, with which hundreds of steps pass before the loss of
    a network this narrow moves.
    """
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=384,
        image_size=SIZES["vit"], patch_size=4, num_channels=1, num_labels=10,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
    )  # fmt: skip
    return ViTForImageClassification(config)


MODELS = {"resnet": partial(resnet32, 10, 1), "vit": small_vit}


def data(folder: Path, size: int) -> Data:
    """The digits, ``size`` pixels along a side; they come with scikit-learn, so that ``folder`` is
    not read.
    """
    loaded = digits.load("cpu")

    def samples(images: torch.Tensor, labels: torch.Tensor) -> TensorSamples:
        small = F.interpolate(images[:, :1], size=(size, size), mode="area")
        return TensorSamples(small, labels)

    no_labels = torch.zeros(len(loaded.probe), dtype=torch.int64)
    return Data(
        train=samples(loaded.images, loaded.labels),
        test=samples(loaded.test_images, loaded.test_labels),
        probe=samples(loaded.probe, no_labels),
    )


def recipe(
    network: str,
    optimizer: str,
    momentum: float = 0.9,
    decay: bool = True,
    epochs: int | None = None,
) -> Recipe:
    """The learning rate falls to a tenth after 40 and 60 % of the epochs, as for CIFAR-10, unless
    ``decay`` is False. ``momentum`` is SGD's.
    """
    rate = LEARNING_RATES[network, optimizer]

    def make(model: nn.Module) -> torch.optim.Optimizer:
        if optimizer == "adamw":
            return torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
        return torch.optim.SGD(model.parameters(), rate, momentum, weight_decay=5e-4)

    return Recipe(
        name=f"digits-{network}-{optimizer}-{momentum:g}-{'decay' if decay else 'constant'}",
        data=partial(data, size=SIZES[network]),
        model=MODELS[network],
        optimizer=make,
        schedule=tenths(0.4, 0.6) if decay else tenths(),
        epochs=epochs or EPOCHS[network],
        batch_size=BATCHES[network],
        classes=10,
        clip=1.0 if network == "vit" else None,
        evaluation_batch=360,
        budget_kinds=("Conv2d",) if network == "resnet" else ("Linear",),
    )
