"""The command line of every experiment: one run per seed, then the paper's table."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from examples.experiments.methods import METHODS, Method
from examples.experiments.recipe import Recipe
from examples.experiments.table import Result, result, table
from examples.experiments.trainer import AMP, How, Run, Settings


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> list[Result]:
    """Run what the options ask for; print and save the table."""
    arguments = _parser(recipe).parse_args(argv)
    recipe = replace(recipe, epochs=arguments.epochs, batch_size=arguments.batch_size)
    value = arguments.value
    if value is None and arguments.method == "neq":
        value = recipe.epsilon
    method = Method(arguments.method, value, arguments.propagate)
    if arguments.deterministic:
        torch.use_deterministic_algorithms(True)
    how = How(workers=arguments.workers, tensorboard=arguments.tensorboard)
    home = arguments.output_dir / recipe.name / str(method).replace(" ", "-").replace(",", "")
    results = []
    for seed in arguments.seeds:
        settings = Settings(
            seed, arguments.device, arguments.amp, arguments.channels_last, arguments.definition
        )
        run = Run(recipe, method, settings, arguments.data, home / f"seed-{seed}", how)
        run.train()
        results.append(result(run))
    _write(home / "results.csv", results)
    text = table(f"{recipe.name}, {method}, {recipe.epochs} epochs", recipe.metric, results)
    print(f"{text}\nWritten: {home}")
    return results


def _write(path: Path, results: Sequence[Result]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(results[0])))
        writer.writeheader()
        writer.writerows(asdict(one) for one in results)


def _parser(recipe: Recipe) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=f"{recipe.name}. A run that was killed goes on with the same command."
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the folder with the data")
    add("--output-dir", type=Path, default=Path("runs"))
    add("--seeds", type=int, nargs="+", default=[1], help="one run each, then mean and deviation")
    add("--method", choices=METHODS, default="neq")
    add(
        "--value", type=float,
        help=f"epsilon of neq (default {recipe.epsilon:g}), share kept by random, share of "
        "parameters of budget, speed-up of the backward of time",
    )  # fmt: skip
    add("--propagate", choices=("all", "active"), default="all", help="active: an approximation")
    add("--definition", choices=("paper", "reference"), default="paper")
    add("--epochs", type=int, default=recipe.epochs)
    add("--batch-size", type=int, default=recipe.batch_size)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--amp", choices=AMP, default="off", help="mixed precision")
    add("--channels-last", action="store_true")
    add("--workers", type=int, default=0, help="processes that load images")
    add("--tensorboard", action="store_true", help="needs tensorboard")
    add(
        "--deterministic", action="store_true",
        help="runs round alike; without, dense and sparse ways are chosen by measurement",
    )  # fmt: skip
    return parser
