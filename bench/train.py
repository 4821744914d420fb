"""Whole training steps as neurons freeze: python -m bench.train

Forward, backward and optimizer step (SGD with momentum and weight decay) of whole networks. The
sets are drawn at random in every layer, or whole early layers are frozen ("prefix"). Providers:

* dense: torch's own network;
* wgrad off: all layers with neurons frozen by requires_grad=False, which the ceiling stands on:
  wgrad off + share * (dense - wgrad off), share of the weight gradients' multiplications;
* masked: dense, then frozen rows zeroed, which is what NEq's own code does;
* naive: indexing with a Python list, see bench/rivals.py;
* whole layers: as many layers, drawn at random, frozen whole by requires_grad=False;
* ours with both values of ``propagate``, stepped by neq.optim's optimizer, which leaves frozen rows
  alone; bench/protect.py has what it costs to restore them behind torch's.

The network without frozen neurons comes first: converted, it must cost what the plain one does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import neq_kernels as neq
from bench.fresh import settle
from bench.harness import NOISE_LIMIT, Row, Stopwatch, Timing, results_path, table, write_csv
from bench.models import NETWORKS, Network
from bench.rivals import naive_forward

RANDOM, PREFIX = (1.0, 0.5, 0.25, 0.1, 0.02), (0.75, 0.5, 0.25)
OURS = {"ours, propagate=all": "all", "ours, propagate=active": "active"}
Sets = Mapping[str, neq.ActiveSet]


@dataclass
class Contender:
    """A network in training; ``after`` follows the backward, and counts as part of it;
    ``compiled`` is what runs in the model's place."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    after: Callable[[], object] | None = None
    compiled: Callable[..., Any] | None = None

    def step(self, network: Network, batch: Tensor) -> tuple[float, float]:
        """Milliseconds of the backward, and of the whole step."""
        self.optimizer.zero_grad()
        watch = Stopwatch(str(batch.device))
        loss = network.training_loss(self.compiled or self.model, batch)
        watch.mark()
        if loss.requires_grad:
            loss.backward()
        if self.after:
            self.after()
        watch.mark()
        self.optimizer.step()
        watch.mark()
        forward, backward, optimizer = watch.ms()
        return backward, forward + backward + optimizer


def contender(model: nn.Module, sets: Sets | None = None, propagate: str = "all") -> Contender:
    """``model`` with its optimizer; converted and frozen where ``sets`` are given."""
    options = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4}
    if sets is None:
        return Contender(model, torch.optim.SGD(model.parameters(), foreach=True, **options))
    neq.convert(model, propagate=propagate)
    optimizer = neq.optim.SGD(model.parameters(), model=model, **options)
    neq.set_active(model, sets)
    return Contender(model, optimizer)


def multiplying(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weight gradients are products, by name, without the last: the head."""
    converted = neq.convert(deepcopy(model))
    names = [
        name for name in neq.get_active(converted) if converted.get_submodule(name).weight.dim() > 1
    ]
    return {name: model.get_submodule(name) for name in names[:-1]}


def neurons(layer: nn.Module) -> int:
    return int(layer.weight.shape[1 if type(layer).__name__ == "Conv1D" else 0])


def draw(model: nn.Module, pattern: str, share: float) -> dict[str, neq.ActiveSet]:
    """Sets with ``share`` of the neurons active: of each layer, or of the layers, the last ones."""
    generator = torch.Generator().manual_seed(0)
    layers = multiplying(model)
    first_active = round((1 - share) * len(layers))
    sets = {}
    for place, (name, layer) in enumerate(layers.items()):
        size = neurons(layer)
        count = max(1, round(share * size))
        if pattern == "prefix":
            count = size if place >= first_active else 0
        chosen = torch.randperm(size, generator=generator)[:count]
        sets[name] = neq.ActiveSet.from_index(chosen, size)
    return sets


def contenders(model: nn.Module, pattern: str, share: float) -> dict[str, Contender]:
    """Every provider, all with the same weights."""
    sets = draw(model, pattern, share)
    made = {"dense": contender(deepcopy(model))}
    if share == 1:
        made["dense again"] = contender(deepcopy(model))
        made["ours, propagate=all"] = contender(deepcopy(model), sets)
        made["wgrad off"] = frozen_layers(model, sets)
        return made
    if pattern == "prefix":
        whole = [name for name, active in sets.items() if active.is_empty]
        made["requires_grad=False"] = frozen_layers(model, whole)
        made["ours, propagate=all"] = contender(deepcopy(model), sets)
        return made
    order = torch.randperm(len(sets), generator=torch.Generator().manual_seed(0)).tolist()
    names = list(sets)
    made["wgrad off"] = frozen_layers(model, sets)
    made["masked"] = masked(model, sets)
    made["naive"] = naive(model, sets)
    made["whole layers"] = frozen_layers(
        model, [names[i] for i in order[: round((1 - share) * len(names))]]
    )
    for name, propagate in OURS.items():
        made[name] = contender(deepcopy(model), sets, propagate)
    return made


def frozen_layers(model: nn.Module, names: Sequence[str] | Sets) -> Contender:
    """Torch's network, the layers of ``names`` frozen whole."""
    model = deepcopy(model)
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    return contender(model)


def masked(model: nn.Module, sets: Sets) -> Contender:
    """Torch's network, the frozen rows of its gradients zeroed after the backward."""
    made = contender(deepcopy(model))
    made.after = zeroing(made.model, sets)
    return made


def zeroing(model: nn.Module, sets: Sets) -> Callable[[], None]:
    """What zeroes the frozen rows of the gradients of ``model``."""
    layers = [(model.get_submodule(name), active.frozen) for name, active in sets.items()]
    layers = [(layer, frozen.to(layer.weight.device)) for layer, frozen in layers]

    def zero() -> None:
        for layer, frozen in layers:
            layer.weight.grad.index_fill_(int(type(layer).__name__ == "Conv1D"), frozen, 0)
            if layer.bias is not None:
                layer.bias.grad.index_fill_(0, frozen, 0)

    return zero


def naive(model: nn.Module, sets: Sets) -> Contender:
    """Torch's network, its frozen rows skipped as bench/rivals.py does."""
    model = deepcopy(model)
    skip_naively(model, sets)
    return contender(model)


def skip_naively(model: nn.Module, sets: Sets) -> None:
    for name, active in sets.items():
        layer = model.get_submodule(name)
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            rows = active.index.tolist()
            layer.forward = lambda x, layer=layer, rows=rows: naive_forward(layer, x, rows)


def wgrad_share(model: nn.Module, batch: Tensor, sets: Sets) -> float:
    """Active share of the multiplications of the weight gradients of the layers in ``sets``."""
    layers = {name: model.get_submodule(name) for name in sets}
    positions: dict[str, int] = {}
    handles = [
        layer.register_forward_hook(
            lambda _, inputs, output, name=name, layer=layer: positions.update(
                {name: output.numel() // neurons(layer)}
            )
        )
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    work = {name: positions[name] * layer.weight.numel() for name, layer in layers.items()}
    active = sum(work[name] * sets[name].count / sets[name].size for name in sets)
    return active / sum(work.values())


def measure(network: Network, layout: str, pattern: str, share: float, rounds: int) -> list[Row]:
    """Rows of the backward and of the whole step, a provider each."""
    torch.manual_seed(0)
    model, batch = network.build("cpu", layout)
    made = contenders(model, pattern, share)
    times = take_turns(network, batch, made, rounds)
    part = wgrad_share(model, batch, draw(model, pattern, share))
    geometry = f"{network.name} @ {'x'.join(map(str, batch.shape))}, {pattern}"
    return rows_of(geometry, network.precision, layout, share, times, part)


Times = Mapping[str, Sequence[tuple[float, float]]]


def take_turns(
    network: Network, batch: Tensor, made: Mapping[str, Contender], rounds: int
) -> Times:
    """Milliseconds of each one's backwards and steps, once our planner has settled."""
    for name, one in made.items():
        if name in OURS:
            settle(one.model, lambda _, one=one: one.step(network, batch))
        for _ in range(2):
            one.step(network, batch)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    names = list(made)
    for round_ in range(rounds):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(made[name].step(network, batch))
    return times


def rows_of(
    geometry: str, dtype: str, layout: str, share: float, times: Times, part: float, path: str = ""
) -> list[Row]:
    """Rows of the backward and of the whole step, a provider each; ``part``: the active share of
    the weight gradients' multiplications; ``path`` says how ours ran."""
    rows = []
    for which, operator in enumerate(("whole backward", "whole step")):
        timings = {name: Timing.of([t[which] for t in found]) for name, found in times.items()}
        rows += [
            _row(operator, geometry, dtype, layout, share, name, timings, part, path)
            for name in times
        ]
    return rows


def _row(
    operator: str, geometry: str, dtype: str, layout: str, share: float, name: str,
    timings: Mapping[str, Timing], part: float, path: str,
) -> Row:  # fmt: skip
    dense, own, ceiling = timings["dense"].median, timings[name], None
    # What the ceiling stands on. Of propagate="active" what is no layer's gradient stays, too, and
    # is measured only where there is a provider without any.
    base = {"all": "wgrad off", "active": "gradients off"}.get(OURS.get(name, ""))
    if base in timings:
        off = timings[base].median
        ceiling = off + part * max(0.0, dense - off)
    return Row(
        operator=operator,
        geometry=geometry,
        dtype=dtype,
        layout=layout,
        active=share,
        provider=name,
        dense_ms=dense,
        ms=own.median,
        p20=own.p20,
        p80=own.p80,
        speedup=dense / own.median,
        ceiling_ms=ceiling,
        ceiling_share=None if ceiling is None else ceiling / own.median,
        path=path if name in OURS else "",
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=9, help="steps of each provider")
    parser.add_argument("--quick", action="store_true", help="two networks, two shares")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    random, prefix, rounds = RANDOM, PREFIX, arguments.rounds
    chosen = [NETWORKS[name] for name in arguments.networks]
    if arguments.quick:
        chosen = [network for network in chosen if network.quick]
        random, prefix, rounds = (1.0, 0.1), (0.5,), min(rounds, 5)
    jobs = [
        (network, layout, pattern, share)
        for network in chosen
        for layout in network.layouts[: 1 if arguments.quick else None]
        for pattern, shares in (("random", random), ("prefix", prefix))
        for share in shares
    ]
    rows: list[Row] = []
    for job in (bar := tqdm(jobs, unit="setting")):
        bar.set_description(f"{job[0].name}, {job[1]}")
        measured = measure(*job, rounds)
        rows += measured
        tqdm.write(table(measured) + _noise(measured) + "\n")
    path = arguments.output or results_path("train")
    write_csv(path, rows)
    print(f"Written: {path}")


def _noise(rows: Sequence[Row]) -> str:
    again = [abs(1 - row.speedup) for row in rows if row.provider == "dense again"]
    if not again:
        return ""
    word = "within" if max(again) <= NOISE_LIMIT else "ABOVE"
    return f"\n  dense against itself: {max(again):.1%} apart, {word} {NOISE_LIMIT:.0%}"


if __name__ == "__main__":
    main()
