"""NEq on CIFAR-10, ResNet-32: ``python -m examples.experiments.cifar10 --data FOLDER``.

FOLDER holds cifar-10-batches-py/ or cifar-10-batches-bin/, as they come from
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from examples.experiments.cli import main
from examples.experiments.images import coin, integer
from examples.experiments.loading import Data, TensorSamples, hold_out
from examples.experiments.recipe import Recipe, tenths
from examples.resnet import resnet32

PROBE_IMAGES = 50
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TRAIN, TEST = tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)


def augment(image: Tensor, generator: Generator) -> Tensor:
    """Shifted by up to 4 pixels over a border of zeros, and flipped."""
    height, width = image.shape[1:]
    padded = F.pad(image, (4, 4, 4, 4))
    top, left = integer(8, generator), integer(8, generator)
    image = padded[:, top : top + height, left : left + width]
    return image.flip(-1) if coin(generator) else image


def read(folder: Path, names: tuple[str, ...]) -> TensorSamples:
    """Images, normalised, and labels of some of CIFAR-10's files, in either of its formats."""
    python, binary = folder / "cifar-10-batches-py", folder / "cifar-10-batches-bin"
    if python.is_dir():
        parts = [_pickled(python / name) for name in names]
    elif binary.is_dir():
        parts = [_binary(binary / f"{name}.bin") for name in names]
    else:
        raise FileNotFoundError(
            f"--data: expected {python} or {binary}, found neither; unpack cifar-10-python.tar.gz "
            "or cifar-10-binary.tar.gz there"
        )
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    images = torch.from_numpy(pixels.reshape(-1, 3, 32, 32)).float() / 255
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return TensorSamples(images, torch.from_numpy(labels).long(), augment)


def _pickled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as file:
        batch = pickle.load(file, encoding="bytes")
    return batch[b"data"], np.array(batch[b"labels"])


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    records = np.fromfile(path, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return records[:, 1:], records[:, 0]


def data(folder: Path) -> Data:
    train, probe = hold_out(read(folder, TRAIN), PROBE_IMAGES)
    return Data(train, read(folder, TEST), probe)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)


RECIPE = Recipe(
    name="cifar10-resnet32",
    data=data,
    model=resnet32,
    optimizer=optimizer,
    schedule=tenths(100 / 250, 150 / 250),
    epochs=250,
    batch_size=100,
    classes=10,
    epsilon=1e-3,
)

if __name__ == "__main__":
    main(RECIPE)
