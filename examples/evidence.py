"""What NEq and its rivals do on handwritten digits: ``python -m examples.evidence``.

Trains ResNet-32 and a small vision transformer with SGD and AdamW: dense; NEq at three epsilons,
exact and with propagate="active"; Random at NEq's own budget; ParameterBudget; TimeBudget; and NEq
under other momenta and without learning-rate decay. Every finished run is a line of runs.csv, and
is not run again: stop when you like, and go on with the same command. ``--report`` only writes
table and figure of the runs there are.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from statistics import mean

import torch
from tqdm import tqdm

import neq_kernels as neq
from examples import evidence_report
from examples.evidence_report import PAPERS_SETUP
from examples.experiments.digits import recipe
from examples.experiments.loading import training_batches
from examples.experiments.methods import METHODS, Method
from examples.experiments.stopwatch import Stopwatch
from examples.experiments.table import Result, result
from examples.experiments.trainer import How, Run, Settings

PARAMETER_BUDGET = 0.3085  # one of those published in arXiv 2312.05282
# The transformer's class token and positions train beneath all its layers, so that no gradient of
# an input can be spared, whatever is frozen: about 1.5 is the most.
SPEEDUPS = {"resnet": (1.5, 2.5), "vit": (1.2, 1.4)}
# Method, its value, and propagate; Random's value is NEq's own budget.
MAIN = {
    network: (
        ("dense", None, "all"),
        ("neq", 1e-3, "all"),
        ("random", None, "all"),
        *(("time", speedup, "all") for speedup in speedups),
        ("neq", 5e-3, "all"),
        ("neq", 5e-3, "active"),
        ("budget", PARAMETER_BUDGET, "all"),
    )
    for network, speedups in SPEEDUPS.items()
}
FURTHER = (
    ("neq", 1e-3, "active"),
    ("neq", 1e-4, "all"),
    ("neq", 1e-4, "active"),
)
SETUPS = tuple((momentum, decay) for momentum in (0.0, 0.6, 0.9) for decay in (True, False))


@dataclass(frozen=True)
class Job:
    """One run. ``value`` of "random" is None until NEq's own budget is known."""

    seed: int
    network: str
    optimizer: str
    method: str
    value: float | None
    propagate: str = "all"
    momentum: float = 0.9
    decay: bool = True

    @property
    def key(self) -> tuple[object, ...]:
        value = None if self.method == "random" else self.value
        return astuple(replace(self, value=value))


@dataclass(frozen=True)
class Finished:
    """``dense_ms``: the backward of a dense twin, timed in turns with the run's own.
    ``predicted_ms`` and ``reached_ms``: of TimeBudget, means over the epochs it chose.
    """

    job: Job
    result: Result
    dense_ms: float
    predicted_ms: float | None = None
    reached_ms: float | None = None


class Twin:
    """A dense network of the same shape, never trained, whose backward takes as long as it would
    for the run: measured every fifth step, so that a machine that slows down slows down both.
    """

    def __init__(self, training: Run) -> None:
        recipe = training.recipe
        with torch.random.fork_rng():
            self.model = recipe.model().train()
        self.batch = next(
            iter(training_batches(training.data.train, recipe.batch_size, seed=0, epoch=0))
        )
        self.loss, self.steps = recipe.loss, 0
        self.watch = Stopwatch("cpu", time.thread_time)

    def step(self) -> None:
        self.steps += 1
        if self.steps % 5:
            return
        self.model.zero_grad()
        loss = self.loss(self.model(self.batch[0]), self.batch[1])
        with self.watch:
            loss.backward()


def jobs(seeds: Sequence[int]) -> Iterator[Job]:
    """All runs: what matters most first, of all seeds, then the rest; NEq before the Random with
    its budget.
    """
    for seed in seeds:
        for network, arms in MAIN.items():
            yield from _arms(seed, network, arms)
    for seed in seeds:
        for network in MAIN:
            yield from _arms(seed, network, FURTHER)
            for momentum, decay in SETUPS:
                if (momentum, decay) != PAPERS_SETUP:
                    yield Job(seed, network, "sgd", "neq", 1e-3, "all", momentum, decay)


def _arms(seed: int, network: str, arms: Sequence[tuple[str, float | None, str]]) -> Iterator[Job]:
    for method, value, propagate in arms:
        for optimizer in ("sgd", "adamw"):
            yield Job(seed, network, optimizer, method, value, propagate)


def run(job: Job, done: Sequence[Finished], epochs: int | None) -> Finished:
    """Train ``job`` and count what it came to."""
    if job.method == "random":
        job = replace(job, value=_own_budget(job, done))
    chosen = recipe(job.network, job.optimizer, job.momentum, job.decay, epochs)
    method = Method(job.method, job.value, job.propagate)
    # Processor time of the one thread: what else the machine does hardly shows in it.
    how = How(save_epochs=0, clock=time.thread_time)
    with tempfile.TemporaryDirectory() as folder:
        training = Run(chosen, method, Settings(seed=job.seed), Path(), Path(folder), how)
        twin = Twin(training)
        training.train(twin.step)
        return Finished(
            job, result(training), twin.watch.milliseconds(), *_predicted(training.tracker)
        )


def _predicted(tracker: neq.Equilibrium | None) -> tuple[float, float] | tuple[()]:
    noted = [] if tracker is None else [epoch.values for epoch in tracker.history]
    chosen = [v for v in noted if "predicted_ms" in v and "backward_ms" in v]
    if not chosen:
        return ()
    return mean(v["predicted_ms"] for v in chosen), mean(v["backward_ms"] for v in chosen)


def _own_budget(job: Job, done: Sequence[Finished]) -> float:
    """The share of neurons that NEq at epsilon 1e-3 trained, over all epochs."""
    wanted = replace(job, method="neq", value=1e-3).key
    return 1 - next(one.result.frozen for one in done if one.job.key == wanted)


def read(path: Path) -> list[Finished]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [_parsed(line) for line in csv.DictReader(file)]


def _parsed(line: dict[str, str]) -> Finished:
    job = Job(
        seed=int(line["seed"]),
        network=line["network"],
        optimizer=line["optimizer"],
        method=line["method"],
        value=float(line["value"]) if line["value"] else None,
        propagate=line["propagate"],
        momentum=float(line["momentum"]),
        decay=line["decay"] == "True",
    )
    numbers = {f.name: float(line[f.name]) for f in fields(Result) if f.name != "seed"}
    times = [
        float(line[name]) if line.get(name) else None
        for name in ("dense_ms", "predicted_ms", "reached_ms")
    ]
    return Finished(job, Result(seed=job.seed, **numbers), *times)


def append(path: Path, finished: Finished) -> None:
    line = {
        **asdict(finished.job),
        **asdict(finished.result),
        "dense_ms": finished.dense_ms,
        "predicted_ms": finished.predicted_ms,
        "reached_ms": finished.reached_ms,
    }
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(line))
        if fresh:
            writer.writeheader()
        writer.writerow(line)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument(
        "--networks", nargs="+", choices=("resnet", "vit"), default=["resnet", "vit"]
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--epochs", type=int, help="of every run")
    parser.add_argument("--report", action="store_true", help="run nothing more")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/evidence"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    # A network that converges early is full of denormals, which CPUs compute ten times slower.
    torch.set_flush_denormal(True)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    path = arguments.output_dir / "runs.csv"
    done = read(path)
    if not arguments.report:
        known = {one.job.key for one in done}
        wanted = [
            job
            for job in jobs(arguments.seeds)
            if job.network in arguments.networks
            and job.method in arguments.methods
            and job.key not in known
        ]
        for job in tqdm(wanted, unit="run"):
            done.append(run(job, done, arguments.epochs))
            append(path, done[-1])
    print(evidence_report.write(arguments.output_dir, done))


if __name__ == "__main__":
    main()
