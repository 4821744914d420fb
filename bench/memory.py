"""Peak memory of a training step as neurons freeze: python -m bench.memory

What torch's allocator hands out on the CPU during forward, backward and optimizer step, as
torch.profiler (profile_memory) reports it: the highest sum since the step began, parameters and
optimizer state not included. What libraries allocate behind torch's back is not seen. Providers,
each settled before: torch's network; ours with 10 % of the neurons active, drawn at random; half
of the layers, drawn at random, frozen whole by requires_grad=False and by us; and all of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

import neq_kernels as neq
from bench.fresh import settle
from bench.harness import results_path, write_csv
from bench.models import NETWORKS, Network
from bench.train import Contender, contender, draw, frozen_layers

MIB = 1 << 20


@dataclass(frozen=True)
class Peak:
    """``share``: of the peak of torch's network with nothing frozen."""

    network: str
    layout: str
    provider: str
    peak_mib: float
    share: float


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that ``run()`` had allocated on the CPU at once, beyond what was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    allocated, peak = 0, 0
    for change in sorted(changes, key=lambda event: event["ts"]):
        allocated += change["args"]["Bytes"]
        peak = max(peak, allocated)
    return peak


def contenders(model: nn.Module) -> dict[str, Contender]:
    """Every provider, all with the same weights."""
    sets = draw(model, "random", 0.1)
    names = list(sets)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    half = [names[i] for i in order[: len(names) // 2]]

    def whole(frozen: Sequence[str]) -> dict[str, neq.ActiveSet]:
        return {
            name: (neq.ActiveSet.empty if name in frozen else neq.ActiveSet.full)(active.size)
            for name, active in sets.items()
        }

    return {
        "dense": contender(deepcopy(model)),
        "ours, all active": contender(deepcopy(model), whole([])),
        "ours, 10 % active": contender(deepcopy(model), sets),
        "half of the layers, requires_grad=False": frozen_layers(model, half),
        "half of the layers, ours": contender(deepcopy(model), whole(half)),
        "all layers, requires_grad=False": frozen_layers(model, names),
        "all layers, ours": contender(deepcopy(model), whole(names)),
    }


def measure(network: Network, layout: str) -> list[Peak]:
    torch.manual_seed(0)
    model, batch = network.make().train(), network.batch()
    if layout == "channels_last":
        model, batch = (x.to(memory_format=torch.channels_last) for x in (model, batch))
    peaks = {}
    for name, one in contenders(model).items():
        if name.startswith("ours"):
            settle(one.model, lambda _, one=one: one.step(network, batch))
        one.step(network, batch)
        one.optimizer.zero_grad()
        peaks[name] = peak_bytes(lambda one=one: one.step(network, batch))
        one.optimizer.zero_grad()
    return [
        Peak(network.name, layout, name, peak / MIB, peak / peaks["dense"])
        for name, peak in peaks.items()
    ]


def table(rows: Sequence[Peak]) -> str:
    lines = [f"{rows[0].network}, {rows[0].layout}"]
    lines += [f"  {row.provider:40} {row.peak_mib:9.1f} MiB {row.share:7.1%}" for row in rows]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="MobileNetV2 in one layout only")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    names = ["MobileNetV2"] if arguments.quick else arguments.networks
    jobs = [
        (NETWORKS[name], layout)
        for name in names
        for layout in NETWORKS[name].layouts[: 1 if arguments.quick else None]
    ]
    found: list[Peak] = []
    for job in tqdm(jobs, unit="network"):
        rows = measure(*job)
        tqdm.write(table(rows))
        found += rows
    path = arguments.output or results_path("memory")
    write_csv(path, found)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
