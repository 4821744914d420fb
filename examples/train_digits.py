"""Train ResNet-32 on handwritten digits, dense and with NEq: ``python -m examples.train_digits``.

Prints loss, test accuracy, frozen share and backward time of both, epoch by epoch, and leaves a
CSV file and a figure in ``--output-dir``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from examples import digits
from examples.figure import save_figure
from examples.results import summary, write_csv
from examples.training import Row, Settings, compare

MEMORY_FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
HEADER = (
    "             loss          test accuracy    frozen   backward, ms a step\n"
    "epoch    dense    NEq     dense     NEq    neurons   dense     NEq   ceiling"
)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options every digits command shares."""
    parser.add_argument("--epochs", type=_positive, default=Settings.epochs)
    parser.add_argument("--batch-size", type=_positive, default=Settings.batch_size)
    parser.add_argument(
        "--epsilon", type=float, default=Settings.epsilon,
        help="a neuron freezes when its velocity falls below this (default %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--propagate", choices=("all", "active"), default=Settings.propagate,
        help='"all": exact gradients for the active neurons; "active": an approximation that also '
        "drops what flows through frozen neurons (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--memory-format", choices=MEMORY_FORMATS, default="contiguous")
    parser.add_argument("--device", default=Settings.device, help="cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--train-images", type=_positive, help="train on the first so many images only"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("runs/digits"))


def run(arguments: argparse.Namespace, seed: int, title: str = "") -> tuple[Settings, list[Row]]:
    """One comparison, with a progress bar and a printed line per epoch."""
    settings = Settings(
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        epsilon=arguments.epsilon,
        propagate=arguments.propagate,
        seed=seed,
        device=arguments.device,
    )
    data = digits.load(
        settings.device, MEMORY_FORMATS[arguments.memory_format], arguments.train_images
    )
    steps = 2 * settings.epochs * math.ceil(len(data.labels) / settings.batch_size)
    rows = []
    print(f"{title}{HEADER}")
    with tqdm(total=steps, unit="step", leave=False, disable=None) as progress:
        for row in compare(settings, data, progress.update):
            rows.append(row)
            progress.write(_line(row))
    return settings, rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_settings(parser)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    arguments = parser.parse_args(argv)
    settings, rows = run(arguments, arguments.seed)
    print(f"\n{summary(rows)}")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    table, figure = arguments.output_dir / "epochs.csv", arguments.output_dir / "epochs.png"
    write_csv(table, rows)
    save_figure(figure, rows, settings)
    print(f"Written: {table} and {figure}")


def _line(row: Row) -> str:
    dense, ours = row.dense, row.neq
    return (
        f"{row.epoch:5} {dense.loss:8.4f} {ours.loss:8.4f} {dense.accuracy:8.2%} "
        f"{ours.accuracy:8.2%} {row.frozen:8.1%} {dense.backward_ms:9.1f} {ours.backward_ms:7.1f} "
        f"{row.ceiling_ms:9.1f}"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text}")
    return value


if __name__ == "__main__":
    main()
