"""What protect costs: python -m bench.protect

As a share of the demo's training step: ResNet-32 on 32x32 images. Each optimizer step that is timed
follows a forward and a backward pass, so that it finds the caches as training leaves them. The bare
optimizer runs twice, as two providers, so that the difference between those two shows what this
machine can tell apart.

And beside the bare step of large networks (``--large``), where nothing else is timed: torch's fused
and foreach steps without and with protect, the cache cold, as in bench/row_optimizers.py; RMSprop
stands for the optimizers whose frozen rows protect copies.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

import neq_kernels as neq
from bench import row_optimizers
from bench.harness import Provider, Row, interleave, results_path, table, write_csv
from bench.models import NETWORKS
from examples.resnet import resnet32


def _step_of(name: str, how: str, model: nn.Module) -> Optimizer:
    options = {"momentum": 0.9, "weight_decay": 5e-4} if name == "SGD" else {"weight_decay": 1e-2}
    kind = getattr(torch.optim, name)
    optimizer: Optimizer = kind(model.parameters(), 1e-4, **{how: True}, **options)
    return optimizer


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), 0.01, momentum=0.9, weight_decay=5e-4),
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), 1e-3),
}
LARGE = "ViT", "ResNet-50"
STEPS: dict[str, Callable[[nn.Module], Optimizer]] = {
    f"{name}, {how}": partial(_step_of, name, how)
    for name in ("SGD", "AdamW")
    for how in ("fused", "foreach")
} | {"RMSprop, foreach": partial(_step_of, "RMSprop", "foreach")}
FROZEN = 0.0, 0.1, 0.5, 0.9, 1.0
LIMIT = 0.02


def freeze(model: nn.Module, share: float) -> None:
    """Freeze ``share`` of the neurons of every layer but the head, drawn at random."""
    head = list(neq.get_active(model))[-1]
    sets = {}
    for name, active in neq.get_active(model).items():
        frozen = 0 if name == head else round(share * active.size)
        sets[name] = torch.randperm(active.size)[frozen:]
    neq.set_active(model, sets)


def measure(name: str, share: float, batch: int, seconds: float, device: str) -> list[Row]:
    """Rows of the bare optimizer's step (twice), the protected one's, and a whole training step."""
    torch.manual_seed(0)
    model = neq.convert(resnet32().to(device))
    freeze(model, share)
    x = torch.randn(batch, 3, 32, 32, device=device)
    y = torch.randint(10, (batch,), device=device)
    bare, again, protected = (OPTIMIZERS[name](model) for _ in range(3))
    neq.protect(protected, model)

    def gradients(_: int) -> None:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()

    def train(i: int) -> None:
        gradients(i)
        protected.step()

    providers = {
        "bare": Provider(lambda _: bare.step(), gradients),
        "bare again": Provider(lambda _: again.step(), gradients),
        "protected": Provider(lambda _: protected.step(), gradients),
        "training step": Provider(train),
    }
    timings = interleave(providers, seconds=seconds, rounds=(7, 1000), device=device)
    reference, step = timings["bare"].median, timings["training step"].median
    return [
        Row(
            operator=f"{name}.step",
            geometry=f"ResNet-32 @ {batch}x3x32x32",
            dtype="float32",
            layout="contiguous",
            active=1 - share,
            provider=label,
            dense_ms=reference,
            ms=timing.median,
            p20=timing.p20,
            p80=timing.p80,
            speedup=reference / timing.median,
            path=f"{timing.median / step:.2%} of a training step",
        )
        for label, timing in timings.items()
    ]


def measure_large(network: str, share: float, seconds: float, device: str) -> list[Row]:
    """A row per optimizer, without and with protect, on all parameters of a network."""
    torch.manual_seed(0)
    model = row_optimizers.prepare(NETWORKS[network].make(), device)
    steps = {}
    for name, make in STEPS.items():
        bare, guarded = make(model), make(model)
        neq.protect(guarded, model)
        steps[name], steps[f"{name}, protect"] = (
            row_optimizers.cold(optimizer, device) for optimizer in (bare, guarded)
        )
    row_optimizers.freeze(model, 1 - share)
    timings = interleave(steps, seconds=seconds, device=device)
    return [
        Row(
            operator=f"{label.split(',')[0]}.step", geometry=f"all of {network}", dtype="float32",
            layout="contiguous", active=1 - share, provider=label,
            dense_ms=timings[label.removesuffix(", protect")].median, ms=timing.median,
            p20=timing.p20, p80=timing.p80,
            speedup=timings[label.removesuffix(", protect")].median / timing.median,
        )
        for label, timing in timings.items()
    ]  # fmt: skip


def verdict(rows: Sequence[Row]) -> str:
    """The cost of protect in this run, beside what the run can tell apart."""
    bare, again, protected, step = (row.ms for row in rows)
    cost, noise = (protected - min(bare, again)) / step, abs(bare - again) / step
    word = "within" if cost <= LIMIT else "ABOVE"
    return f"protect: {cost:.2%} of a training step, {word} {LIMIT:.0%} (noise {noise:.2%})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--frozen", nargs="+", type=float, default=FROZEN, help="shares, 0 to 1")
    parser.add_argument("--large", nargs="*", choices=LARGE, default=LARGE, help="steps alone")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=20.0, help="per optimizer and share")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    rows = []
    for network in arguments.large:
        # A network frozen whole has no gradient: there is nothing to step.
        for share in (share for share in arguments.frozen if share < 1):
            rows += measure_large(network, share, arguments.seconds, arguments.device)
            print(f"{table(rows[-2 * len(STEPS) :])}\n", flush=True)
    for name in arguments.optimizers:
        for share in arguments.frozen:
            rows += measure(name, share, arguments.batch, arguments.seconds, arguments.device)
            print(f"{table(rows[-4:])}\n  {verdict(rows[-4:])}\n", flush=True)
    path = arguments.output or results_path("protect", arguments.device)
    write_csv(path, rows, arguments.device)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
