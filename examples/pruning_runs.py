"""Four ways to prune a network, the most pruned one of equal error, and what it is worth to other
classes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from examples.pruning_training import Settings, Split, judged, train_epoch
from neq_kernels import pruning

METHODS = "one-shot", "gradual", "SeReNe", "LOBSTER"
AMOUNTS = 0.8, 0.9, 0.95, 0.98, 0.99, 0.995
# Validation accuracy a pruned network may lose to count as of equal error.
MARGIN = 0.01


@dataclass(frozen=True)
class Point:
    """A pruned network on the way: shares of parameters and neurons gone, and test error."""

    method: str
    seed: int
    zeroed: float
    removed: float
    error: float


@dataclass
class Levels:
    """Of each share of zeroed parameters that a method went through, the network with the lowest
    validation loss."""

    data: Split
    best: dict[float, tuple[float, float, nn.Module]] = field(default_factory=dict)

    def note(self, model: nn.Module) -> None:
        """Remember ``model`` if it is the best of its level."""
        loss, right = judged(model, self.data.validation)
        level = round(pruning.share_zeroed(model), 4)
        if level not in self.best or loss < self.best[level][0]:
            self.best[level] = loss, right, copy.deepcopy(model)

    def most_pruned(self, dense: nn.Module) -> nn.Module:
        """The most pruned network of equal error: with a validation accuracy at most MARGIN below
        that of ``dense``, which it is itself if there is no other."""
        floor = judged(dense, self.data.validation)[1] - MARGIN
        good = [level for level, (_, right, _) in self.best.items() if right >= floor]
        return self.best[max(good)][2] if good else dense

    def lowest(self) -> nn.Module:
        """The network of lowest loss, of whatever level."""
        return min(self.best.values(), key=lambda found: found[0])[2]

    def points(self, method: str, seed: int) -> list[Point]:
        """What each level's network is worth on the test images."""
        return [
            Point(
                method, seed, pruning.share_zeroed(model), pruning.share_removed(model),
                1 - judged(model, self.data.test)[1],
            )
            for _, (_, _, model) in sorted(self.best.items())
        ]  # fmt: skip


def prune(method: str, dense: nn.Module, settings: Settings, data: Split) -> Levels:
    """``dense``, which stays as it is, pruned by one of METHODS to many levels."""
    levels = Levels(data)
    if method == "one-shot":
        for amount in AMOUNTS:
            levels.best.update(one_shot(amount, dense, settings, data).best)
    else:
        _gradual(method, dense, settings, levels)
    return levels


def one_shot(amount: float, dense: nn.Module, settings: Settings, data: Split) -> Levels:
    """``dense`` pruned to ``amount`` at once, then fine-tuned, which keeps the zeros."""
    model, optimizer = _start(dense, settings)
    schedule = pruning.OneShot(amount, patience=1, slack=-1 + 1e-9)
    # The network is trained already: no loss counts as good after the first, which sets the mark.
    while not schedule.prunings:
        schedule.update(model, partial(_loss, data=data), optimizer)
    levels = Levels(data)
    for epoch in range(settings.tune):
        train_epoch(model, optimizer, _later(settings, data, epoch), partial(schedule.step, model))
        levels.note(model)
    return levels


def _gradual(method: str, dense: nn.Module, settings: Settings, levels: Levels) -> None:
    model, optimizer = _start(dense, settings)
    schedule = pruning.Gradual(
        settings.tolerance, patience=1, slack=-0.02, weights_only=method == "SeReNe"
    )
    with ExitStack() as stack:
        step: Callable[[], None] = lambda: schedule.step(model)  # noqa: E731
        if method == "SeReNe":
            step = stack.enter_context(pruning.SeReNe(model, settings.strength, "lower_bound")).step
        elif method == "LOBSTER":
            step = stack.enter_context(pruning.LOBSTER(model, settings.strength)).step
        for epoch in range(settings.epochs):
            train_epoch(model, optimizer, _later(settings, levels.data, epoch), step)
            levels.note(model)
            if schedule.update(model, partial(_loss, data=levels.data), optimizer).finished:
                break


def _start(dense: nn.Module, settings: Settings) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = copy.deepcopy(dense)
    return model, torch.optim.SGD(model.parameters(), settings.rate, momentum=0.9)


def _later(settings: Settings, data: Split, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    return data.batches(settings.batch_size, settings.seed, settings.dense + epoch)


def _loss(model: nn.Module, data: Split) -> float:
    return judged(model, data.validation)[0]


def transfer(model: nn.Module, settings: Settings, data: Split) -> tuple[float, float]:
    """Test accuracy on other classes: of a linear probe, that is logistic regression on what the
    head of ``model`` reads, and of all of it fine-tuned under a new head."""
    features = copy.deepcopy(model).eval()
    features.fc = nn.Identity()
    with torch.no_grad():
        (x, y), (x_test, y_test) = (
            (features(i).numpy(), n.numpy()) for i, n in (data.train, data.test)
        )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)).fit(x, y)
    tuned = copy.deepcopy(model)
    torch.manual_seed(settings.seed)
    # What is pruned stays so; the new head has no mask.
    tuned.fc = nn.Linear(tuned.fc.in_features, data.classes)
    optimizer = torch.optim.SGD(tuned.parameters(), settings.rate, momentum=0.9)
    for epoch in range(settings.move):
        batches = data.batches(settings.batch_size, settings.seed, epoch)
        train_epoch(tuned, optimizer, batches, partial(pruning.apply_masks, tuned))
    return float(probe.score(x_test, y_test)), judged(tuned, data.test)[1]
