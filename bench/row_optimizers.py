"""neq.optim against torch's fused optimizers: python -m bench.row_optimizers

Steps of parameters that exceed the cache, whole ``optimizer.step()`` calls. Dense is torch's own
with fused=True, which steps every row; beside it the same
under protect. The ceiling is the
time if every active row cost exactly its share. Bytes count what a dense step must move: for each
element, AdamW reads four numbers and writes three, SGD with momentum reads three and writes two.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

import neq_kernels as neq
from bench.harness import (
    Provider,
    Row,
    interleave,
    noise,
    noise_verdict,
    results_path,
    table,
    write_csv,
)

SHARES = (1.0, 0.5, 0.1)
MIB = 1 << 20
MOVED = {"AdamW": 7, "SGD": 5}  # numbers per element
OPTIONS = {"AdamW": {}, "SGD": {"momentum": 0.9, "weight_decay": 5e-4}}
# Rows of 4 KiB, of 256 bytes, and of 9 KiB.
KINDS = {
    "Linear 1024 -> 1024": lambda: nn.Linear(1024, 1024),
    "Linear 64 -> 1024": lambda: nn.Linear(64, 1024),
    "Conv2d 256 -> 256, 3x3": lambda: nn.Conv2d(256, 256, 3),
}


def model_of(kind: str, mib: int, device: str) -> nn.Sequential:
    """As many layers as make ``mib`` MiB of parameters, each with a gradient."""
    each = KINDS[kind]()
    count = max(1, mib * MIB // sum(p.nbytes for p in each.parameters()))
    model = nn.Sequential(*(KINDS[kind]() for _ in range(count))).to(device)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-2
    return neq.convert(model)


def freeze(model: nn.Module, share: float) -> None:
    """Leave ``share`` of the neurons of every layer active, drawn at random."""
    for layer in model:
        index = torch.randperm(layer.size)[: max(1, round(share * layer.size))]
        layer.set_active(None if share == 1 else index)
        for _, p, dim in layer.neuron_parameters():
            p.grad.index_fill_(dim, layer.active.frozen.to(p.device), 0)


def providers(name: str, model: nn.Module) -> dict[str, Optimizer]:
    """All on the same parameters and gradients, each with a state of its own."""
    options = {"lr": 1e-4, **OPTIONS[name]}
    theirs, ours = getattr(torch.optim, name), getattr(neq.optim, name)
    made = {
        "torch, fused": theirs(model.parameters(), fused=True, **options),
        "torch, fused, protect": theirs(model.parameters(), fused=True, **options),
        "neq.optim": ours(model.parameters(), model=model, **options),
    }
    neq.protect(made["torch, fused, protect"], model)
    return made


def measure(name: str, kind: str, mib: int, seconds: float, device: str) -> list[Row]:
    """A row per provider and share of active neurons."""
    torch.manual_seed(0)
    model = model_of(kind, mib, device)
    optimizers = providers(name, model)
    elements = sum(p.numel() for p in model.parameters())
    rows = []
    for share in SHARES:
        freeze(model, share)
        steps = {label: Provider(lambda _, o=o: o.step()) for label, o in optimizers.items()}
        timings = interleave(steps, seconds=seconds, device=device)
        dense = timings["torch, fused"].median
        for label, timing in timings.items():
            nbytes = MOVED[name] * 4 * elements * (share if label == "neq.optim" else 1)
            rows.append(
                Row(
                    operator=f"{name}.step", geometry=f"{mib} MiB of {kind}", dtype="float32",
                    layout="contiguous", active=share, provider=label, dense_ms=dense,
                    ms=timing.median, p20=timing.p20, p80=timing.p80,
                    speedup=dense / timing.median, ceiling_ms=dense * share,
                    ceiling_share=dense * share / timing.median,
                    gb_s=nbytes / timing.median / 1e6,
                )
            )  # fmt: skip
    return rows


def dense_noise(kind: str, seconds: float, device: str) -> float:
    """How far torch's own step is from itself."""
    optimizer = providers("AdamW", model_of(kind, 64, device))["torch, fused"]
    return noise(Provider(lambda _: optimizer.step()), seconds=seconds, device=device)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="64 MiB of one kind of layer")
    parser.add_argument("--seconds", type=float, default=2.0, help="per optimizer, kind and share")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    kinds = list(KINDS)[:1] if arguments.quick else list(KINDS)
    sizes = (64,) if arguments.quick else (64, 256)
    print(noise_verdict(dense_noise(kinds[0], arguments.seconds, arguments.device)))
    rows = []
    cases = [(name, kind, mib) for name in MOVED for kind in kinds for mib in sizes]
    for name, kind, mib in tqdm(cases, disable=None):
        measured = measure(name, kind, mib, arguments.seconds, arguments.device)
        tqdm.write(table(measured) + "\n")
        rows += measured
    path = arguments.output or results_path("row_optimizers", arguments.device)
    write_csv(path, rows, arguments.device)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
