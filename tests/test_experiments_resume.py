"""Runs that were killed end as if they had not been."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from experiment import assert_same, run, small, tiny_cifar, write_cifar
from torch import nn

from examples.experiments import cifar10
from examples.experiments.methods import Method
from examples.experiments.trainer import How, Run, Settings
from examples.resnet import ResNet


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    return write_cifar(tmp_path_factory.mktemp("cifar"))


class KilledError(Exception):
    pass


def states(folder):
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    for row in saved["progress"]["rows"]:
        for name in ("backward_ms", "probe_s", "seconds"):
            del row[name]
    del saved["backward"], saved["tracker"]["plan"]
    for entry in saved["tracker"]["history"]:
        del entry["seconds"], entry["share"]
        entry["values"].pop("backward_ms", None)
    return saved


class Dropping(nn.Module):
    """Draws from torch's generator in training, as dropout does everywhere."""

    def __init__(self):
        super().__init__()
        self.net = ResNet(1)

    def forward(self, x):
        return self.net(nn.functional.dropout(x, 0.1, self.training))


@pytest.mark.parametrize("steps", [3, 4, 6])
def test_a_killed_run_ends_as_if_it_had_not_been(cifar, tmp_path, steps, monkeypatch):
    """Killed within an epoch after a checkpoint, within one before, and at the end of one."""
    monkeypatch.setattr(cifar10, "PROBE_IMAGES", 8)
    recipe = tiny_cifar(epochs=3, batch_size=13, model=Dropping, epsilon=0.05)

    def training(folder):
        settings, how = Settings(seed=3), How(save_steps=3)
        return Run(recipe, Method("neq", 0.05), settings, cifar, tmp_path / folder, how)

    training("whole").train()
    taken = []

    def kill():
        taken.append(None)
        if len(taken) == steps:
            raise KilledError

    with pytest.raises(KilledError):
        training("killed").train(kill)
    torch.manual_seed(99)
    resumed = training("killed")
    assert (resumed.epoch - 1) * 4 + resumed.step == {3: 3, 4: 3, 6: 4}[steps]
    resumed.train()
    whole = states(tmp_path / "whole")
    assert_same(whole, states(tmp_path / "killed"))
    assert any(not mask.all() for mask in whole["progress"]["history"][-1].values())
    with (tmp_path / "killed" / "epochs.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_a_process_killed_for_good_is_resumed(cifar, tmp_path):
    command = [sys.executable, "-m", "examples.experiments.cifar10", "--data", str(cifar)]
    command += ["--device", "cpu", "--deterministic", "--epochs", "1000", "--batch-size", "5"]
    command += ["--output-dir", str(tmp_path)]
    folder = tmp_path / "cifar10-resnet32" / "neq-0.001" / "seed-1"
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not (folder / "epochs.csv").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    recipe = small(cifar10.RECIPE, epochs=1000, batch_size=5)
    resumed = Run(recipe, Method("neq", 1e-3), Settings(), cifar, folder)
    assert resumed.epoch >= 2
    assert len(resumed.rows) == resumed.epoch - 1


def test_another_setting_is_refused_before_anything_changes(cifar, tmp_path):
    run(tiny_cifar(epochs=1), cifar, tmp_path)
    with pytest.raises(ValueError, match=r"epochs: there 1, now 2.*another --output-dir"):
        run(tiny_cifar(), cifar, tmp_path)
