"""Tiny experiments, and CIFAR-10's files for them."""

import pickle
from dataclasses import replace

import numpy as np
import torch

from examples.experiments import cifar10
from examples.experiments.cli import main
from examples.resnet import ResNet


def small(recipe, **changes):
    return replace(recipe, **{"epochs": 2, "batch_size": 4, **changes})


def run(recipe, data, tmp_path, *options):
    return main(
        recipe,
        ["--data", str(data), "--output-dir", str(tmp_path / "runs"), "--device", "cpu", *options],
    )


def cifar_arrays(seed, count):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    return random.integers(0, 256, (count, 3072), dtype=np.uint8), labels


def write_cifar(folder):
    """CIFAR-10's files in both formats, of 12 images each."""
    python, binary = folder / "cifar-10-batches-py", folder / "cifar-10-batches-bin"
    python.mkdir()
    binary.mkdir()
    for seed, name in enumerate((*cifar10.TRAIN, *cifar10.TEST)):
        pixels, labels = cifar_arrays(seed, 12)
        with (python / name).open("wb") as file:
            batch = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": name.encode()}
            pickle.dump(batch, file, protocol=2)
        records = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
        records.tofile(binary / f"{name}.bin")
    return folder


def tiny_cifar(**changes):
    """The recipe with one block per stage instead of five."""
    return small(cifar10.RECIPE, **{"model": lambda: ResNet(1), **changes})


def assert_same(ours, theirs, where=""):
    """Equal to the bit, but for times that were measured."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        for key, value in ours.items():
            if key != "backward_ms":
                assert_same(value, theirs[key], f"{where}/{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for place, (mine, yours) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(mine, yours, f"{where}/{place}")
    else:
        assert ours == theirs, where
