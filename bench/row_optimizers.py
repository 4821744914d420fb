"""neq.optim against torch's optimizers: python -m bench.row_optimizers

Whole ``optimizer.step()`` calls: layers whose parameters exceed the cache, in rows of 64 to 4,096
elements, and the parameters of whole networks. Between calls other memory is written, so that each
finds the cache cold. Dense is torch's own with fused=True, which steps every row; beside it
foreach=True, and both under protect. The ceiling is the time if every active row cost exactly its
share. Bytes count what a dense step must move: for each element, AdamW reads four numbers and
writes three, SGD with momentum reads three and writes two.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

import neq_kernels as neq
from bench.harness import (
    CACHE_BYTES,
    Provider,
    Row,
    interleave,
    noise,
    noise_verdict,
    results_path,
    table,
    write_csv,
)
from bench.models import NETWORKS

SHARES = (1.0, 0.5, 0.1)
MIB = 1 << 20
MOVED = {"AdamW": 7, "SGD": 5}  # numbers per element
OPTIONS = {"AdamW": {}, "SGD": {"momentum": 0.9, "weight_decay": 5e-4}}
# Layers of 4 MiB.
KINDS = {
    f"Linear {row} -> {MIB // row}": partial(nn.Linear, row, MIB // row)
    for row in (64, 256, 1024, 4096)
}
WHOLE = ("ResNet-32", "ViT", "ResNet-50")


def layers_of(kind: str, mib: float) -> nn.Module:
    """As many layers as make ``mib`` MiB of parameters."""
    each = KINDS[kind]()
    count = max(1, int(mib * MIB) // sum(p.nbytes for p in each.parameters()))
    return nn.Sequential(*(KINDS[kind]() for _ in range(count)))


def geometry_of(kind: str, mib: float) -> str:
    return f"{mib} MiB of {kind}"


def prepare(model: nn.Module, device: str) -> nn.Module:
    """Converted, on its device, each parameter with a gradient."""
    model.to(device)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-2
    return neq.convert(model)


def freeze(model: nn.Module, share: float) -> None:
    """Leave ``share`` of the neurons of every layer active, drawn at random."""
    for layer in filter(lambda m: hasattr(m, "neuron_parameters"), model.modules()):
        index = torch.randperm(layer.size)[: max(1, round(share * layer.size))]
        layer.set_active(None if share == 1 else index)
        for _, p, dim in layer.neuron_parameters():
            p.grad.index_fill_(dim, layer.active.frozen.to(p.device), 0)


def providers(name: str, model: nn.Module) -> dict[str, Optimizer]:
    """All on the same parameters and gradients, each with a state of its own."""
    options = {"lr": 1e-4, **OPTIONS[name]}
    theirs, ours = getattr(torch.optim, name), getattr(neq.optim, name)
    made: dict[str, Optimizer] = {}
    for how in ("fused", "foreach"):
        for guarded in ("", ", protect"):
            optimizer = theirs(model.parameters(), **{how: True}, **options)
            if guarded:
                neq.protect(optimizer, model)
            made[f"torch, {how}{guarded}"] = optimizer
    made["neq.optim"] = ours(model.parameters(), model=model, **options)
    return made


def measure(
    name: str, make: Callable[[], nn.Module], geometry: str, seconds: float, device: str
) -> list[Row]:
    """A row per provider and share of active neurons."""
    torch.manual_seed(0)
    model = prepare(make(), device)
    optimizers = providers(name, model)
    elements = sum(p.numel() for p in model.parameters())
    rows = []
    for share in SHARES:
        freeze(model, share)
        steps = {label: cold(optimizer, device) for label, optimizer in optimizers.items()}
        timings = interleave(steps, seconds=seconds, device=device)
        dense = timings["torch, fused"].median
        for label, timing in timings.items():
            stepped = share if label == "neq.optim" else 1
            rows.append(
                Row(
                    operator=f"{name}.step", geometry=geometry, dtype="float32",
                    layout="contiguous", active=share, provider=label, dense_ms=dense,
                    ms=timing.median, p20=timing.p20, p80=timing.p80,
                    speedup=dense / timing.median, ceiling_ms=dense * share,
                    ceiling_share=dense * share / timing.median,
                    gb_s=MOVED[name] * 4 * elements * stepped / timing.median / 1e6,
                )
            )  # fmt: skip
    return rows


def cold(optimizer: Optimizer, device: str) -> Provider:
    """A step that finds nothing of what it needs in the cache."""
    other = torch.zeros(CACHE_BYTES // 4, device=device)
    return Provider(lambda _: optimizer.step(), lambda _: other.add_(1))


def dense_noise(kind: str, seconds: float, device: str) -> float:
    """How far torch's own step is from itself."""
    model = prepare(layers_of(kind, 64), device)
    return noise(
        cold(providers("AdamW", model)["torch, fused"], device), seconds=seconds, device=device
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="64 MiB of one kind of layer")
    parser.add_argument("--optimizers", nargs="+", choices=MOVED, default=list(MOVED))
    parser.add_argument("--seconds", type=float, default=2.0, help="per optimizer, kind and share")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    kinds = list(KINDS)[:1] if arguments.quick else list(KINDS)
    cases = [
        (geometry_of(kind, mib), partial(layers_of, kind, mib))
        for kind in kinds
        for mib in ((64,) if arguments.quick else (64, 256))
    ]
    if not arguments.quick:
        cases += [(f"all of {name}", NETWORKS[name].make) for name in WHOLE]
    print(noise_verdict(dense_noise(kinds[0], arguments.seconds, arguments.device)))
    rows = []
    for name, (geometry, make) in tqdm(list(product(arguments.optimizers, cases)), disable=None):
        measured = measure(name, make, geometry, arguments.seconds, arguments.device)
        tqdm.write(table(measured) + "\n")
        rows += measured
    path = arguments.output or results_path("row_optimizers", arguments.device)
    write_csv(path, rows, arguments.device)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
