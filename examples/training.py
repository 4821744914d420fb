"""One seed, trained twice: dense and with NEq, epoch by epoch in turn on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F

import neq_kernels as neq
from examples.digits import Digits
from examples.resnet import resnet32
from examples.timing import Ceiling, clock

LEARNING_RATE = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
DECAY_AT = (0.4, 0.6)


@dataclass(frozen=True)
class Settings:
    """What a run can vary; the recipe's other numbers are the constants above."""

    epochs: int = 20
    batch_size: int = 128
    epsilon: float = 1e-3
    mu: float = 0.5
    propagate: str = "all"
    seed: int = 1
    device: str = "cpu"

    @property
    def milestones(self) -> list[int]:
        """Epochs after which the learning rate falls to a tenth."""
        return [round(share * self.epochs) for share in DECAY_AT]


@dataclass(frozen=True)
class Epoch:
    """One arm's epoch. Times are medians over its full batches, in milliseconds per step."""

    loss: float
    accuracy: float
    backward_ms: float
    step_ms: float


@dataclass(frozen=True)
class Row:
    """One epoch of both arms.

    ``frozen`` is the share of the watched neurons frozen while training it, ``wgrad`` the active
    share of the weight gradients' multiplications, ``ceiling_ms`` see :class:`Ceiling`, ``probe_s``
    the seconds the measurement of equilibrium took after it.
    """

    epoch: int
    dense: Epoch
    neq: Epoch
    frozen: float
    wgrad: float
    ceiling_ms: float
    probe_s: float


class Arm:
    """A network in training."""

    def __init__(self, settings: Settings, digits: Digits) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.digits = digits
        self.model = resnet32().to(settings.device, memory_format=digits.memory_format)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, settings.milestones)

    def train(self, epoch: int, on_step: Callable[[], object]) -> Epoch:
        """Train one epoch, then measure the accuracy on the test images."""
        size, device = self.settings.batch_size, self.settings.device
        self.model.train()
        losses, backward, step = [], [], []
        for images, labels in self.digits.batches(size, self.settings.seed, epoch):
            started = clock(device)
            loss = F.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            before = clock(device)
            loss.backward()
            after = clock(device)
            self.optimizer.step()
            ended = clock(device)
            losses.append(loss.item() * len(labels))
            # The last batch may be smaller; it would only blur the medians.
            if len(labels) == size or not step:
                backward.append((after - before) * 1e3)
                step.append((ended - started) * 1e3)
            on_step()
        self.schedule.step()
        mean_loss = sum(losses) / len(self.digits.labels)
        return Epoch(mean_loss, self.accuracy(), median(backward), median(step))

    @torch.no_grad()
    def accuracy(self) -> float:
        """Share of the test images classified rightly."""
        self.model.eval()
        predicted = self.model(self.digits.test_images).argmax(1)
        return (predicted == self.digits.test_labels).float().mean().item()


def with_neq(arm: Arm) -> neq.Equilibrium:
    """Give ``arm`` NEq: these lines are all that a training script needs."""
    neq.convert(arm.model, propagate=arm.settings.propagate)
    neq.protect(arm.optimizer, arm.model)
    return neq.Equilibrium(
        arm.model,
        [arm.digits.probe],
        selector=neq.selectors.Velocity(epsilon=arm.settings.epsilon),
        momentum=arm.settings.mu,
    )


def compare(
    settings: Settings, digits: Digits, on_step: Callable[[], object] = lambda: None
) -> Iterator[Row]:
    """Train both arms from the same weights, one :class:`Row` per epoch.

    The epochs alternate, dense then NEq, so that a machine that slows down slows down both.
    ``on_step`` is called after every training step.
    """
    if settings.device == "cpu":
        # A network that converges early is full of denormals, which CPUs compute ten times slower.
        torch.set_flush_denormal(True)
    dense, ours = Arm(settings, digits), Arm(settings, digits)
    twin = Arm(settings, digits).model
    batch = next(digits.batches(settings.batch_size, settings.seed, 0))
    ceiling = Ceiling(twin, batch, settings.propagate)
    tracker = with_neq(ours)
    report = tracker.update()
    for epoch in range(1, settings.epochs + 1):
        frozen, active = report.frozen_share, neq.get_active(ours.model)
        dense_epoch = dense.train(epoch, on_step)
        neq_epoch = ours.train(epoch, on_step)
        ceiling_ms = ceiling.milliseconds(active, dense_epoch.backward_ms)
        report = tracker.update()
        yield Row(
            epoch, dense_epoch, neq_epoch, frozen, ceiling.wgrad_share(active), ceiling_ms,
            report.seconds,
        )  # fmt: skip
