"""The backward pass of one layer (dgrad, wgrad, bias) as its neurons freeze: python -m bench.layers

Providers: "dense", torch's layer; "wgrad off", torch's layer with weight and bias frozen; "masked",
dense and then zeroed, which is what NEq's own code does; "naive", see bench/rivals.py; and ours
with both values of ``propagate``, once the planner has settled. The ceiling is the time if every
active row cost exactly its share: wgrad off + share * (dense - wgrad off), and share * dense for
``propagate="active"``. Of an input that needs no gradient, such as a network's own, only the
weight's and the bias's are left ("layer wgrad"), and the ceiling is share * dense.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import neq_kernels as neq
from bench.cases import CASES, SHARES, Case
from bench.fresh import settle
from bench.harness import (
    Provider,
    Row,
    Timing,
    apart,
    input_sets,
    interleave,
    noise,
    noise_verdict,
    results_path,
    table,
    write_csv,
)
from bench.peaks import Peaks
from bench.rivals import naive_forward

OURS = {"ours, propagate=all": "all", "ours, propagate=active": "active"}


class Backward:
    """The backward pass of ``layer``, ready to run on each of several inputs."""

    def __init__(
        self,
        layer: nn.Module,
        inputs: Sequence[Tensor],
        gradients: Sequence[Tensor],
        forward: Callable[[Tensor], Tensor] | None = None,
        after: Callable[[], object] | None = None,
        needs_dx: bool = True,
        context: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.layer = layer
        self.context = context
        self._forward = forward or layer
        self.inputs = [x.detach().requires_grad_(needs_dx) for x in inputs]
        self.gradients = gradients
        self.after = after
        self.record()

    def forward(self, x: Tensor) -> Tensor:
        with self.context():
            return self._forward(x)

    def record(self) -> None:
        """Run the forwards that the backwards start from, anew."""
        self.outputs = [self.forward(x) for x in self.inputs]

    def step(self, i: int) -> None:
        """A forward and its backward, as in training."""
        i %= len(self.inputs)
        self.prepare(i)
        self.forward(self.inputs[i]).backward(self.gradients[i])

    def prepare(self, i: int) -> None:
        self.inputs[i].grad = None
        self.layer.zero_grad()

    def run(self, i: int) -> None:
        self.outputs[i].backward(self.gradients[i], retain_graph=True)
        if self.after:
            self.after()


def backwards(
    case: Case,
    active: neq.ActiveSet,
    inputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
    needs_dx: bool = True,
) -> dict[str, Backward]:
    """Every provider of one case, all with the same weights and inputs."""
    device = str(inputs[0].device)
    layer = case.layer(device)
    make = partial(
        Backward, inputs=inputs, gradients=gradients, needs_dx=needs_dx,
        context=lambda: case.autocast(device),
    )  # fmt: skip
    wgrad_off = deepcopy(layer).requires_grad_(False)
    masked = deepcopy(layer)
    frozen, dim = active.frozen.to(device), int(case.kind == "columns")

    def zero_frozen_rows() -> None:
        masked.weight.grad.index_fill_(dim, frozen, 0)
        masked.bias.grad.index_fill_(0, frozen, 0)

    made = {"dense": make(deepcopy(layer))}
    if needs_dx:
        made["wgrad off"] = make(wgrad_off)
    made["masked"] = make(masked, after=zero_frozen_rows)
    if case.kind != "columns":
        naive = deepcopy(layer)
        rows = active.index.tolist()
        made["naive"] = make(naive, forward=lambda x: naive_forward(naive, x, rows))
    for name, propagate in OURS.items():
        if propagate == "active" and not needs_dx:
            continue  # no dX, no difference
        ours = neq.convert(deepcopy(layer), propagate=propagate)
        ours.set_active(active)
        made[name] = make(ours)
    return made


def measure(
    case: Case,
    share: float,
    seconds: float,
    device: str,
    needs_dx: bool = True,
    peaks: Peaks | None = None,
) -> list[Row]:
    """A row per provider of ``case`` with ``share`` of its neurons active, drawn at random; with
    the least time that ``peaks`` leave, where given."""
    generator = torch.Generator().manual_seed(0)
    count = max(1, round(share * case.neurons))
    chosen = torch.randperm(case.neurons, generator=generator)[:count]
    active = neq.ActiveSet.from_index(chosen, case.neurons)
    example = case.example(device)
    with torch.no_grad(), case.autocast(device):
        output = case.layer(device)(example)
    # On a GPU the cache is flushed between calls.
    sets = 2 if torch.device(device).type == "cuda" else input_sets(example.nbytes + output.nbytes)
    inputs = [torch.randn_like(example) for _ in range(sets)]
    gradients = [torch.randn_like(output) for _ in range(sets)]
    runs = backwards(case, active, inputs, gradients, needs_dx)
    for name in runs.keys() & OURS.keys():
        settle(runs[name].layer, runs[name].step)
        runs[name].record()
    check_gradients(runs["masked"], runs["ours, propagate=all"])
    providers = {name: Provider(run.run, run.prepare) for name, run in runs.items()}
    timings = interleave(apart(providers, sets), sets=sets, seconds=seconds, device=device)
    weight = runs["dense"].layer.weight
    moved = (1 + needs_dx) * (example.nbytes + weight.nbytes) + output.nbytes
    return [
        _row(case, count / case.neurons, name, timings, path_of(run.layer), moved, needs_dx, peaks)
        for name, run in runs.items()
        if name != "wgrad off" or share == 1
    ]


def check_gradients(torchs: Backward, ours: Backward) -> None:
    """A time is worth nothing where the gradients are not torch's, frozen rows zeroed.

    Raises:
        RuntimeError: ours are not within what rounding explains.
    """
    for run in (torchs, ours):
        run.prepare(0)
        run.run(0)
    for name, expected in torchs.layer.named_parameters():
        found = ours.layer.get_parameter(name).grad
        if expected.grad is None:
            continue
        error = (found - expected.grad).abs().max()
        allowed = 0.02 * expected.grad.abs().max()
        if not error <= allowed:
            raise RuntimeError(
                f"{name}: expected gradients within {allowed:.3g} of torch's, got one {error:.3g} "
                "away; do not trust this build"
            )


def path_of(layer: nn.Module) -> str:
    """How the last backward of a converted layer went, in a word or two; empty for torch's own."""
    if not neq.get_active(layer):
        return ""
    return neq.report(layer).layers[0].path.split(":")[0].split(",")[0]


def _row(
    case: Case, active: float, name: str, timings: dict[str, Timing], path: str, moved: int,
    needs_dx: bool, peaks: Peaks | None,
) -> Row:  # fmt: skip
    dense, own = timings["dense"].median, timings[name]
    off = timings["wgrad off"].median if needs_dx else 0.0
    propagate = OURS.get(name, "all")
    if propagate == "active":
        ceiling, useful = active * dense, 2 * active
    else:
        ceiling, useful = off + active * max(0.0, dense - off), needs_dx + active
    is_ours = name in OURS
    roofline = peaks and is_ours and peaks.roofline_ms(case, active, needs_dx, propagate)
    return Row(
        operator="layer backward" if needs_dx else "layer wgrad",
        geometry=f"{case.kind} {case.geometry}",
        dtype=case.precision,
        layout=case.layout,
        active=active,
        provider=name,
        dense_ms=dense,
        ms=own.median,
        p20=own.p20,
        p80=own.p80,
        speedup=dense / own.median,
        ceiling_ms=ceiling if is_ours else None,
        ceiling_share=ceiling / own.median if is_ours else None,
        path=path,
        gb_s=moved / own.median / 1e6,
        tflop_s=2 * useful * case.macs() / own.median / 1e9 if name != "wgrad off" else None,
        roofline_ms=roofline or None,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few layers only")
    parser.add_argument("--cases", default="*", help="pattern of case names, such as 'ViT*'")
    parser.add_argument("--seconds", type=float, default=1.5, help="per case and active share")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of all cases")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    cases = [
        case
        for case in CASES
        if fnmatch(case.name, arguments.cases) and (case.quick or not arguments.quick)
    ]
    if arguments.dtype:
        cases = [replace(case, dtype=getattr(torch, arguments.dtype)) for case in cases]
    print(noise_verdict(dense_noise(arguments.device)))
    rows = []
    for case in tqdm(cases, disable=None):
        measured = [
            row
            for share in SHARES
            for row in measure(case, share, arguments.seconds, arguments.device)
        ]
        tqdm.write(table(measured) + "\n")
        rows += measured
    path = arguments.output or results_path("layers", arguments.device)
    write_csv(path, rows, arguments.device)
    print(f"Written: {path}")


def dense_noise(device: str) -> float:
    """How far a dense convolution's backward is from itself."""
    case = next(case for case in CASES if case.name == "ResNet-50 middle 2")
    x = case.example(device)
    layer = case.layer(device)
    run = Backward(layer, [x], [torch.randn_like(layer(x))])
    return noise(Provider(run.run, run.prepare), device=device)


if __name__ == "__main__":
    main()
