"""What SeReNe and LOBSTER add to a training step of the demo's network: python -m bench.pruning

ResNet-32 on 32x32 images, SGD. Every provider is a whole training step, and all of them train the
same network in turns. Plain SGD runs twice, as two providers, so that the difference between those
two shows what this machine can tell apart. The optimizer's and LOBSTER's update are timed alone,
too: a fused kernel in place of torch's foreach operators cannot save more than they take.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from bench.harness import Provider, Row, interleave, results_path, table, write_csv
from examples.resnet import resnet32
from neq_kernels.pruning import LOBSTER, SeReNe

STRENGTH = 1e-4
# Shares of plain SGD's step that each may add; one more backward pass is measured.
LIMITS = {"LOBSTER": 0.10, "SeReNe local": 0.10}
ALONE = "SGD's update alone", "LOBSTER's update alone"


def measure(batch: int, seconds: float, device: str, full: bool) -> list[Row]:
    """Rows of a training step: plain (twice), plain with a second backward, and regularised."""
    torch.manual_seed(0)
    model = resnet32().to(device)
    x = torch.randn(batch, 3, 32, 32, device=device)
    y = torch.randint(10, (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def train(after: Callable[[], object], again: bool = False) -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if again:
            torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        loss.backward()
        optimizer.step()
        after()

    def serene(variant: str) -> Provider:
        def run(_: int) -> None:
            # Hooks of one variant must not be there while another provider trains.
            with SeReNe(model, STRENGTH, variant) as regulariser:  # type: ignore[arg-type]
                train(regulariser.step)

        return Provider(run)

    lobster = LOBSTER(model, STRENGTH)
    providers = {
        "SGD": Provider(lambda _: train(lambda: None)),
        "SGD again": Provider(lambda _: train(lambda: None)),
        "two backward passes": Provider(lambda _: train(lambda: None, again=True)),
        "LOBSTER": Provider(lambda _: train(lobster.step)),
        ALONE[0]: Provider(lambda _: optimizer.step()),
        ALONE[1]: Provider(lambda _: lobster.step()),
        "SeReNe local": serene("local"),
        "SeReNe lower_bound": serene("lower_bound"),
    }
    if full:
        providers["SeReNe full"] = serene("full")
    timings = interleave(providers, seconds=seconds, rounds=(7, 1000), device=device)
    plain = timings["SGD"].median

    def base(label: str) -> float:
        return timings[ALONE[0]].median if label in ALONE else plain

    return [
        Row(
            operator="training step",
            geometry=f"ResNet-32 @ {batch}x3x32x32",
            dtype="float32",
            layout="contiguous",
            active=1.0,
            provider=label,
            dense_ms=base(label),
            ms=timing.median,
            p20=timing.p20,
            p80=timing.p80,
            speedup=base(label) / timing.median,
            path=f"{timing.median / plain - (label not in ALONE):+.1%} of SGD's step",
        )
        for label, timing in timings.items()
    ]


def verdict(rows: Sequence[Row]) -> str:
    """What each adds, beside what it may add and what the run can tell apart."""
    ms = {row.provider: row.ms for row in rows}
    plain = min(ms["SGD"], ms["SGD again"])
    limits = {**LIMITS, "SeReNe lower_bound": ms["two backward passes"] / plain - 1}
    lines = [f"noise {abs(ms['SGD'] - ms['SGD again']) / plain:.1%}"]
    for name, limit in limits.items():
        cost = ms[name] / plain - 1
        lines.append(f"{name}: {cost:+.1%}, {'within' if cost <= limit else 'ABOVE'} {limit:.1%}")
    lines += [f"{name}: {ms[name] / plain:.1%}" for name in ALONE]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--full", action="store_true", help="SeReNe's variant full, too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    rows = measure(arguments.batch, arguments.seconds, arguments.device, arguments.full)
    print(f"{table(rows)}\n{verdict(rows)}")
    path = arguments.output or results_path("pruning", arguments.device)
    write_csv(path, rows, arguments.device)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
