"""Captured CUDA graphs: a layer's forward and backward replayed, while its set changes.

"eager" launches every kernel anew, "graph" replays them. Each is timed with torch's layer and with
ours, whose set is drawn anew before every call. Where there are no graphs, the eager ones remain.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import neq_kernels as neq
from bench.cases import Case
from bench.geometries import cases as all_cases
from bench.harness import Provider, Row, interleave

SHARE = 0.1
LAYERS = ("ViT-B MLP in", "ViT-B projection", "GPT-2 medium MLP out", "ResNet-50 stage 3 middle",
          "ResNet-50 stage 4 expand")  # fmt: skip


class Step:
    """One layer's forward and backward on inputs that stay where they are."""

    def __init__(self, case: Case, layer: nn.Module, device: str) -> None:
        self.case, self.layer, self.device = case, layer, device
        self.x = case.example(device).requires_grad_()
        self.dy: Tensor | None = None
        self.run()

    def run(self) -> None:
        # Gradients are made anew, in memory of the graph's own when it is captured.
        self.x.grad = None
        self.layer.zero_grad()
        with self.case.autocast(self.device):
            y = self.layer(self.x)
        if self.dy is None:
            self.dy = torch.randn_like(y)
        y.backward(self.dy)


def captured(step: Step) -> torch.cuda.CUDAGraph:
    """``step.run()`` as a graph, after warming up on another stream as torch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step.run()
    torch.cuda.current_stream().wait_stream(stream)
    step.x.grad = None
    step.layer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run()
    return graph


def measure(case: Case, device: str, seconds: float) -> list[Row]:
    """A row per provider; dense is torch's layer, launched eagerly."""
    count = max(1, round(SHARE * case.neurons))
    plain = case.layer(device)
    ours = neq.convert(case.layer(device))
    ours.set_active(range(count))

    def another_set(_: int) -> None:
        ours.set_active(torch.randperm(case.neurons)[:count])

    steps = {"dense": Step(case, plain, device), "ours": Step(case, ours, device)}
    providers = {
        f"{name}, eager": Provider(
            lambda _, step=step: step.run(), another_set if name == "ours" else None
        )
        for name, step in steps.items()
    }
    if torch.device(device).type == "cuda":
        # Steps of their own: a graph keeps the memory it was captured with.
        for name, layer in (("dense", plain), ("ours", ours)):
            graph = captured(Step(case, layer, device))
            providers[f"{name}, graph"] = Provider(
                lambda _, graph=graph: graph.replay(), another_set if name == "ours" else None
            )
    timings = interleave(providers, seconds=seconds, device=device)
    dense = timings["dense, eager"].median
    return [
        Row(
            operator="forward + backward", geometry=f"{case.kind} {case.geometry}",
            dtype=case.precision, layout=case.layout, active=count / case.neurons, provider=name,
            dense_ms=dense, ms=timing.median, p20=timing.p20, p80=timing.p80,
            speedup=dense / timing.median,
        )
        for name, timing in timings.items()
    ]  # fmt: skip


def units(
    device: str, cases: list[Case] | None = None, seconds: float = 0.3
) -> dict[str, Callable[[], list[Row]]]:
    """Every measurement by name."""
    if cases is None:
        cases = [case for of in all_cases().values() for case in of if case.name in LAYERS]
    return {f"replay {case.geometry}": partial(measure, case, device, seconds) for case in cases}
