"""neq.profile: what freezing would gain in this model on this machine, layer by layer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from neq_kernels import planner
from neq_kernels.convert import all_active, convert, converted_layers, revert
from neq_kernels.equilibrium.undisturbed import undisturbed, unwrapped
from neq_kernels.example import outputs_with_graph
from neq_kernels.gradients import Needed
from neq_kernels.profile.calls import Call, capture
from neq_kernels.profile.cuts import find_cuts
from neq_kernels.profile.measure import Bench, Clock, interleave, step_ms
from neq_kernels.profile.result import LayerTime, Profile

__all__ = ["LayerTime", "Profile", "profile"]


def profile(
    model: nn.Module,
    example_input: Any,
    active: Sequence[float] = (1.0, 0.5, 0.1),
    *,
    seconds: float = 0.2,
    progress: bool = True,
    clock: Clock = time.perf_counter,
) -> Profile:
    """Measure the backward of every layer of ``model``, dense and with a share of its neurons.

    Runs the model once to see the geometries it meets, then times each on random numbers: the
    plain dense backward, the backward without its weight gradient, and every way to compute only
    the active rows. What turns out the fastest is kept in the plan, so that training need not
    measure it. The model is as it was afterwards.

    Args:
        model: converted or not (then all of it is converted for the time being); may be compiled or
            wrapped in DistributedDataParallel. In train mode, as it will be: `forward_ms` and
            `backward_ms` are of the mode it is in.
        example_input: what the model takes: a tensor, a tuple of arguments or a mapping of
            keywords, with the batch size, dtype and memory format of training. Call under
            ``torch.autocast`` what trains under it.
        active: shares of active neurons, each in (0, 1].
        seconds: how long to measure each geometry at each share.
        progress: show a progress bar, if tqdm is installed.
        clock: reads seconds on a CPU. On a machine that does other work too, and with one thread
            (torch.set_num_threads(1)), `time.thread_time` is better: processor time.

    Raises:
        ValueError: a share that is not in (0, 1], or nothing to measure in ``model``.
        RuntimeError: nothing that ``model`` returns depends on its parameters.
    """
    for share in active:
        if not 0 < share <= 1:
            raise ValueError(
                f"active: expected shares in (0, 1], got {share!r}; a layer without active "
                "neurons has no weight gradient to measure"
            )
    model = unwrapped(model)
    with _converted(model):
        calls = capture(model, example_input)
        if not any(calls.values()):
            raise ValueError(
                "model: expected Linear or convolution layers that train, got none; "
                "print(neq.report(model)) after neq.convert(model) says what was skipped and why"
            )
        device = next(call.dy.device for found in calls.values() for call in found)
        kinds = {name: layer.origin.__name__ for name, layer in converted_layers(model).items()}
        forward_ms, backward_ms = _step(model, example_input, device, clock)
        cuts = find_cuts(model, example_input, clock)
    distinct = list(dict.fromkeys(call for found in calls.values() for call in found))
    with undisturbed(model):
        measured = {
            call: _measure(call, active, seconds, clock) for call in _shown(distinct, progress)
        }
    rows = [
        _layer(name, kinds[name], share, [measured[call][i] for call in found])
        for i, share in enumerate(active)
        for name, found in calls.items()
        if found
    ]
    return Profile(tuple(rows), forward_ms, backward_ms, cuts)


def _measure(call: Call, active: Sequence[float], seconds: float, clock: Clock) -> list[LayerTime]:
    """One row per share, without a name."""
    bench, device = Bench(call), call.dy.device
    full = bench.active(call.size)
    dgrad = Needed(call.needed.dx, False, False)
    rows = []
    for share in active:
        count = max(1, round(share * call.size))
        channels = bench.active(count)
        ways = {"plain": bench.way(full, "dense")}
        if call.needed.dx:
            ways["dgrad"] = bench.way(full, "dense", dgrad)
        if count < call.size:
            paths = planner.ways(bench.geometry(channels))
            ways |= {path: bench.way(channels, path) for path in paths}
        ms = interleave(ways, seconds, device, clock)
        path = "plain"
        if count < call.size:
            path = min(paths, key=ms.__getitem__)
            planner.plan.decide(bench.geometry(channels), path)
        dense, through = ms["plain"], min(ms.get("dgrad", 0.0), ms["plain"])
        ceiling = through + count / call.size * (dense - through)
        if call.propagate == "active":
            ceiling = count / call.size * dense
        rows.append(
            LayerTime("", "", share, count, call.size, dense, through, ms[path], ceiling, path)
        )
    return rows


def _layer(name: str, kind: str, share: float, calls: Sequence[LayerTime]) -> LayerTime:
    """A layer's calls as one row."""
    paths = list(dict.fromkeys(call.path for call in calls))
    first = calls[0]
    return LayerTime(
        name, kind, share, first.count, first.size,
        dense_ms=sum(call.dense_ms for call in calls),
        dgrad_ms=sum(call.dgrad_ms for call in calls),
        ours_ms=sum(call.ours_ms for call in calls),
        ceiling_ms=sum(call.ceiling_ms for call in calls),
        path=" and ".join(paths),
    )  # fmt: skip


@contextmanager
def _converted(model: nn.Module) -> Iterator[None]:
    """Everything converted and active inside, and as it was afterwards."""
    if converted_layers(model):
        with all_active(model):
            yield
        return
    convert(model)
    try:
        with all_active(model):
            yield
    finally:
        revert(model)


def _step(
    model: nn.Module, example_input: Any, device: torch.device, clock: Clock
) -> tuple[float, float]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    with undisturbed(model, evaluate=False), torch.enable_grad():
        return step_ms(lambda: outputs_with_graph(model, example_input), parameters, device, clock)


def _shown(calls: list[Call], progress: bool) -> Any:
    if progress:
        try:
            from tqdm.auto import tqdm  # type: ignore[import-untyped]
        except ImportError:
            return calls
        return tqdm(calls, desc="profile", unit="geometry", leave=False)
    return calls
