"""Schedules, batches, metrics and logs of the experiments."""

import sys
from types import ModuleType

import pytest
import torch
from experiment import assert_same
from torch import nn

from examples.experiments import cifar10, coco, imagenet, swin
from examples.experiments.loading import (
    TensorSamples,
    evaluation_batches,
    hold_out,
    training_batches,
)
from examples.experiments.log import TensorBoard
from examples.experiments.methods import Method
from examples.experiments.metrics import Confusion
from examples.experiments.recipe import Recipe
from examples.experiments.stopwatch import Stopwatch


def rates(recipe, epochs, at):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 1.0)
    schedule = recipe.schedule(optimizer, 2, epochs)
    found = []
    for _ in range(2 * epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [found[2 * epoch] for epoch in at]


def test_schedules_are_the_papers():
    cifar_rates = rates(cifar10.RECIPE, 250, [99, 100, 149, 150])
    assert cifar_rates == pytest.approx([1, 0.1, 0.1, 0.01])
    assert rates(imagenet.RECIPE, 90, [29, 30, 60]) == pytest.approx([1, 0.1, 0.01])
    assert rates(swin.RECIPE, 30, [0, 5]) == pytest.approx([1e-3, 1])
    assert rates(swin.RECIPE, 30, [29])[0] < 0.02
    assert rates(coco.RECIPE, 30, [0, 15]) == pytest.approx([1, 0.5**0.9])


def test_batches_go_on_where_they_stopped_whoever_loads_them():
    def noisy(image, generator):
        return image + torch.rand(1, generator=generator)

    samples = TensorSamples(torch.arange(20.0).view(20, 1), torch.arange(20), noisy)
    whole = list(training_batches(samples, 4, seed=1, epoch=2))
    rest = list(training_batches(samples, 4, seed=1, epoch=2, first_step=2, workers=1))
    assert_same(whole[2:], rest)
    other = next(iter(training_batches(samples, 4, seed=1, epoch=3)))
    assert not torch.equal(whole[0][1], other[1])


def test_the_probe_is_held_out_and_evaluation_draws_nothing():
    samples = TensorSamples(torch.arange(10.0).view(10, 1), torch.arange(10))
    train, probe = hold_out(samples, 3)
    assert sorted([*train.members, *probe.members]) == list(range(10))
    before = torch.get_rng_state()
    assert [len(y) for _, y in evaluation_batches(probe, 2)] == [2, 1]
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="fewer probe images than the 10"):
        hold_out(samples, 10)


def test_metrics_against_counting():
    confusion = Confusion(3, "cpu")
    target = torch.tensor([0, 0, 1, 1, 255])
    confusion.add(nn.functional.one_hot(torch.tensor([0, 1, 1, 1, 0]), 3).float(), target)
    assert confusion.top1() == 0.75
    assert confusion.miou() == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_stopwatch_takes_the_median_step():
    now = iter([0.0, 0.001, 1.0, 1.005, 2.0, 2.003])
    watch = Stopwatch("cpu", lambda: next(now))
    for _ in range(3):
        with watch:
            pass
    assert watch.milliseconds() == pytest.approx(3)


def test_method_needs_a_value_or_none():
    with pytest.raises(ValueError, match="--method random: expected a --value"):
        Method("random", None)
    with pytest.raises(ValueError, match="--method dense: expected no --value"):
        Method("dense", 0.5)
    assert str(Method("neq", 1e-3, "active")) == "neq 0.001, active"


def test_tensorboard_is_written_or_named(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append(purge_step)

        def add_scalar(self, *values):
            written.append(values)

        def flush(self):
            pass

        def close(self):
            written.append("closed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    board = TensorBoard(tmp_path, True, 5)
    board.add({"epoch": 5, "loss": 0.5})
    board.close()
    assert written == [5, ("epoch", 5, 5), ("loss", 0.5, 5), "closed"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
        TensorBoard(tmp_path, True, 1)
    TensorBoard(tmp_path, False, 1).add({"epoch": 1})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_back_what_was_written(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    killed = TensorBoard(tmp_path, True, 1)
    for epoch in (1, 2):
        killed.add({"epoch": epoch, "loss": 1.0 / epoch})
    killed.close()
    resumed = TensorBoard(tmp_path, True, 2)
    for epoch in (2, 3):
        resumed.add({"epoch": epoch, "loss": 10.0 * epoch})
    resumed.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["epoch", "loss"]
    read = [(event.step, event.value) for event in events.Scalars("loss")]
    assert read == [(1, 1.0), (2, 20.0), (3, 30.0)]


def test_recipes_share_what_the_paper_fixes():
    for recipe in (cifar10.RECIPE, imagenet.RECIPE, swin.RECIPE, coco.RECIPE):
        assert isinstance(recipe, Recipe)
        assert recipe.mu == 0.5
    found = [(r.epochs, r.batch_size, r.epsilon) for r in (cifar10.RECIPE, imagenet.RECIPE)]
    assert found == [(250, 100, 1e-3), (90, 256, 1e-3)]
    found = [(r.epochs, r.batch_size, r.epsilon) for r in (swin.RECIPE, coco.RECIPE)]
    assert found == [(30, 128, 1e-3), (30, 32, 2e-2)]
