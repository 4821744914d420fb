"""One training run: NEq's lines in an ordinary loop, logged, and resumed where it was killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import neq_kernels as neq
from examples.experiments import checkpoint
from examples.experiments.loading import evaluation_batches, steps_per_epoch, training_batches
from examples.experiments.log import TensorBoard, write_csv
from examples.experiments.methods import Method, Setting
from examples.experiments.metrics import Confusion
from examples.experiments.recipe import Recipe, scores
from examples.experiments.stopwatch import Stopwatch

SHARES = (1.0, 0.75, 0.5, 0.25, 0.1)
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """Of one run, beside its recipe's and its method. Those of ``how`` do not change results."""

    seed: int = 1
    device: str = "cpu"
    amp: str = "off"
    channels_last: bool = False
    definition: str = "paper"


@dataclass(frozen=True)
class How:
    """What may differ when a run is resumed; ``save_epochs=0`` keeps no checkpoint."""

    workers: int = 0
    save_epochs: int = 1
    save_steps: int = 1000
    tensorboard: bool = False
    clock: Callable[[], float] = time.perf_counter


class Run:
    """A network in training, with everything that a checkpoint must hold.

    Args:
        data: the folder that the recipe reads.
        folder: where checkpoint.pt, epochs.csv and TensorBoard's events go. A run that was
            killed goes on from what it finds there, and ends as if it had not been.

    Raises:
        ValueError: ``folder`` holds a run with other settings.
    """

    def __init__(
        self, recipe: Recipe, method: Method, settings: Settings, data: Path, folder: Path,
        how: How = How(),
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe, self.method, self.settings, self.how = recipe, method, settings, how
        self.folder, self.device = folder, settings.device
        self.identity = _identity(recipe, method, settings)
        saved = checkpoint.load(folder / "checkpoint.pt", self.identity)
        torch.manual_seed(settings.seed)
        self.data = recipe.data(data)
        self.model = recipe.model().to(self.device)
        if settings.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.steps = steps_per_epoch(self.data.train, recipe.batch_size)
        self.optimizer = recipe.optimizer(self.model)
        self.schedule = recipe.schedule(self.optimizer, self.steps, recipe.epochs)
        self.scaler = torch.amp.GradScaler(
            torch.device(self.device).type, enabled=settings.amp == "fp16"
        )
        self.tracker = None if method.name == "dense" else self._track()
        self.epoch, self.step, self.loss = 1, 0, 0.0
        self.rows: list[dict[str, float]] = []
        self.history: list[dict[str, Tensor]] = []
        self.backward = Stopwatch(self.device, how.clock)
        if saved is not None:
            self._restore(saved)
        elif self.tracker is not None:
            self.tracker.update()

    def _track(self) -> neq.Equilibrium:
        """Give the model NEq: these lines are all that a training script needs."""
        neq.convert(self.model, propagate=self.method.propagate)
        neq.protect(self.optimizer, self.model)
        setting = Setting(
            self.settings.seed,
            self.recipe.budget_kinds,
            self._profile,
            calibrate=not torch.are_deterministic_algorithms_enabled(),
        )
        # On the host: every update moves it to the device batch by batch.
        probe = [self._laid_out(x) for x, _ in evaluation_batches(self.data.probe, 50)]
        return neq.Equilibrium(
            self.model,
            probe,
            selector=self.method.selector(setting),
            momentum=self.recipe.mu,
            definition=self.settings.definition,
        )

    def _profile(self) -> Any:
        images, _ = next(
            iter(training_batches(self.data.train, self.recipe.batch_size, seed=0, epoch=0))
        )
        with self._autocast():
            return neq.profile(
                self.model.train(),
                self._to_device(images),
                active=SHARES,
                seconds=0.05,
                progress=False,
                clock=self.how.clock,
            )

    def train(self, after_step: Callable[[], object] = lambda: None) -> list[dict[str, float]]:
        """Train what is left; one row per epoch. ``after_step`` is called after every step."""
        board = TensorBoard(self.folder, self.how.tensorboard, self.epoch)
        while self.epoch <= self.recipe.epochs:
            begun = time.perf_counter()
            self.history[self.epoch - 1 :] = [self._masks()]
            self._train_epoch(after_step)
            self.rows.append(self._end_epoch(begun))
            self.epoch, self.step, self.loss = self.epoch + 1, 0, 0.0
            self.backward = Stopwatch(self.device, self.how.clock)
            if self.how.save_epochs and (self.epoch - 1) % self.how.save_epochs == 0:
                self.save()
            write_csv(self.folder / "epochs.csv", self.rows)
            board.add(self.rows[-1])
        board.close()
        return self.rows

    def _train_epoch(self, after_step: Callable[[], object]) -> None:
        self.model.train()
        batches = training_batches(
            self.data.train, self.recipe.batch_size, seed=self.settings.seed, epoch=self.epoch,
            first_step=self.step, workers=self.how.workers,
        )  # fmt: skip
        total = torch.tensor(self.loss, dtype=torch.float64)
        for images, target in batches:
            total = total + self._train_step(self._to_device(images), target.to(self.device))
            self.step += 1
            if self.how.save_epochs and self.step % self.how.save_steps == 0:
                self.loss = float(total)
                self.save()
            after_step()
        self.loss = float(total)

    def _train_step(self, images: Tensor, target: Tensor) -> Tensor:
        with self._autocast():
            loss = self.recipe.loss(self.model(images), target)
        self.optimizer.zero_grad()
        scaled = self.scaler.scale(loss)
        with self.backward:
            scaled.backward()
        if self.recipe.clip is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return loss.detach().double()

    def _end_epoch(self, begun: float) -> dict[str, float]:
        rate = self.optimizer.param_groups[0]["lr"]
        frozen = _frozen_share(self.history[-1])
        noted = {self.recipe.metric: self.evaluate(), "backward_ms": self.backward.milliseconds()}
        probe = 0.0
        if self.tracker is not None:
            self.tracker.log(**noted)
            probe = self.tracker.update().seconds
        return {
            "epoch": self.epoch,
            "loss": self.loss / self.steps,
            **noted,
            "frozen": frozen,
            "lr": rate,
            "probe_s": probe,
            "seconds": time.perf_counter() - begun,
        }

    @torch.no_grad()
    def evaluate(self) -> float:
        """The recipe's metric over the test set, 0 to 1."""
        self.model.eval()
        confusion = Confusion(self.recipe.classes, self.device)
        size = self.recipe.evaluation_batch
        for images, target in evaluation_batches(self.data.test, size, self.how.workers):
            with self._autocast():
                output = self.model(self._to_device(images))
            confusion.add(scores(output), target.to(self.device))
        return confusion.miou() if self.recipe.metric == "miou" else confusion.top1()

    def _autocast(self) -> Any:
        dtype = AMP[self.settings.amp]
        return torch.autocast(torch.device(self.device).type, dtype, enabled=dtype is not None)

    def _to_device(self, images: Tensor) -> Tensor:
        return self._laid_out(images.to(self.device, non_blocking=True))

    def _laid_out(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout)

    def _masks(self) -> dict[str, Tensor]:
        return {name: active.mask() for name, active in neq.get_active(self.model).items()}

    def save(self) -> None:
        """Everything the rest of the run depends on, and everything it reports."""
        tracker = None if self.tracker is None else self.tracker.state_dict()
        state = {
            "settings": self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "tracker": tracker,
            "random": checkpoint.random_state(),
            "progress": {name: getattr(self, name) for name in PROGRESS},
            "backward": self.backward.all(),
        }
        checkpoint.save(self.folder / "checkpoint.pt", state)

    def _restore(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.scaler.load_state_dict(saved["scaler"])
        if self.tracker is not None:
            self.tracker.load_state_dict(saved["tracker"])
        checkpoint.set_random_state(saved["random"])
        for name, value in saved["progress"].items():
            setattr(self, name, value)
        self.backward.past = saved["backward"]


PROGRESS = ("epoch", "step", "loss", "rows", "history")


def _identity(recipe: Recipe, method: Method, settings: Settings) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    names = ("name", "epochs", "batch_size", "mu", "clip")
    return {
        **{name: getattr(recipe, name) for name in names},
        "method": asdict(method),
        **asdict(settings),
    }


def _frozen_share(masks: dict[str, Tensor]) -> float:
    """Of the neurons of all converted layers."""
    every = torch.cat(list(masks.values())) if masks else torch.ones(1)
    return 1 - every.double().mean().item()
