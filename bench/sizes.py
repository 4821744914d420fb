"""Training on inputs of many sizes, as detection and padded text bring them: python -m bench.sizes

500 steps (forward, backward, SGD) over 200 different input sizes in a fresh process with an empty
plan: what the planner measures, and what its rule decides for the sizes beyond, is all in the
time. Providers take turns on every step: torch's network; the same with the frozen rows of its
gradients zeroed ("dense"); the converted one. At 90 % active there is next to nothing to gain.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import neq_kernels as neq
from bench.fresh import run_fresh
from bench.harness import results_path, write_csv
from bench.models import NETWORKS, Network
from bench.train import Contender, contender, draw, masked

STEPS, SIZES = 500, 200
SHARES = (0.9, 0.5, 0.1)
LIMIT = 0.98
Size = tuple[int, ...]


def images(size: Size) -> Tensor:
    return torch.randn(2, 3, *size)


def texts(size: Size) -> Tensor:
    return torch.randint(0, 2000, (1, *size))


# Heights and widths from 24 to 63, and lengths from 57 to 256.
INPUTS: dict[str, tuple[Callable[[Size], Tensor], list[Size]]] = {
    "ResNet-32": (images, [(h, w) for h in range(24, 64) for w in range(24, 64)]),
    "GPT-2": (texts, [(length,) for length in range(57, 257)]),
}


@dataclass(frozen=True)
class Total:
    """The whole time of one provider; ``speed`` is that of "dense" over it."""

    network: str
    active: float
    provider: str
    steps: int
    sizes: int
    seconds: float
    speed: float


def schedule(candidates: Sequence[Size], sizes: int, steps: int) -> list[Size]:
    """``steps`` sizes in random order: ``sizes`` different ones, each at least once."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(candidates), generator=generator)[:sizes].tolist()
    more = torch.randint(len(order), (steps - len(order),), generator=generator)
    numbers = torch.tensor(order + [order[i] for i in more.tolist()])
    shuffled = numbers[torch.randperm(len(numbers), generator=generator)]
    return [candidates[i] for i in shuffled.tolist()]


def contenders(network: Network, share: float) -> dict[str, Contender]:
    """The three providers with the same weights; nothing is protected, so that all step alike."""
    torch.manual_seed(0)
    model = network.make().train()
    sets = draw(model, "random", share)
    ours = contender(neq.convert(deepcopy(model)))
    neq.set_active(ours.model, sets)
    return {"torch": contender(deepcopy(model)), "dense": masked(model, sets), "ours": ours}


def measure(network: Network, share: float, steps: int, sizes: int) -> list[Total]:
    make, candidates = INPUTS[network.name]
    plan = schedule(candidates, sizes, steps)
    made = contenders(network, share)
    names = list(made)
    times = dict.fromkeys(names, 0.0)
    for number, size in enumerate(tqdm(plan, desc=f"{network.name}, {share:.0%}")):
        batch = make(size)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name] += made[name].step(network, batch)[1] / 1e3
    return [
        Total(
            network.name, share, name, steps, len(set(plan)), seconds, times["dense"] / seconds
        )
        for name, seconds in times.items()
    ]  # fmt: skip


def verdict(rows: Sequence[Total]) -> str:
    speeds = {row.provider: row.speed for row in rows}
    word = "reached" if speeds["ours"] >= LIMIT else "MISSED"
    return (
        f"{rows[0].network}, {rows[0].active:.0%} active, {rows[0].steps} steps over "
        f"{rows[0].sizes} sizes: {speeds['ours']:.3f} of dense's speed, {LIMIT} {word} (torch "
        f"without zeroing: {speeds['torch']:.3f})"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=INPUTS, default=list(INPUTS))
    parser.add_argument("--active", nargs="+", type=float, default=SHARES, help="shares")
    parser.add_argument("--quick", action="store_true", help="one network and share, 50 steps")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    parser.add_argument("--fresh", type=Path, help=argparse.SUPPRESS)  # what a process writes
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    steps, sizes = (50, 20) if arguments.quick else (STEPS, SIZES)
    if arguments.fresh:
        (name,), (share,) = arguments.networks, arguments.active
        rows = measure(NETWORKS[name], share, steps, sizes)
        arguments.fresh.write_text(json.dumps([asdict(row) for row in rows]))
        return
    networks, shares = arguments.networks, arguments.active
    quick = ["--quick"] if arguments.quick else []
    if arguments.quick:
        networks, shares = networks[:1], shares[:1]
    found: list[Total] = []
    for name in networks:
        for share in shares:
            options = ["--networks", name, "--active", str(share), *quick]
            rows = [Total(**row) for row in run_fresh("bench.sizes", options)]
            print(verdict(rows), flush=True)
            found += rows
    path = arguments.output or results_path("sizes")
    write_csv(path, found)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
