"""What a backward saves if its network is frozen whole from the input up to a layer.

Autograd runs a network's backward in the reverse order of its forward. A clock at every layer's
output, read when its gradient arrives, tells how much of the backward is still to come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from neq_kernels.backward_graph import BackwardGraph
from neq_kernels.convert import converted_layers
from neq_kernels.equilibrium.undisturbed import undisturbed
from neq_kernels.example import outputs_with_graph

ROUNDS = 5


@dataclass(frozen=True)
class Cut:
    """A prefix of the network.

    Attributes:
        frozen: the layers in it, norms too, in the order of the forward.
        silent: layers whose input gets no gradient any more once the prefix is frozen whole.
        below_ms: what the dense backward still takes when the gradient has arrived at the output of
            the first layer above, with all that this layer and those below do; 0 where something
            else beneath trains and keeps the backward going.
    """

    frozen: tuple[str, ...]
    silent: tuple[str, ...]
    below_ms: float


def find_cuts(
    model: nn.Module, example_input: Any, clock: Callable[[], float] = time.perf_counter
) -> tuple[Cut, ...]:
    """Every prefix of the converted layers of `model`, none first, whole last; the model stays as
    it was. All its neurons must be active."""
    with undisturbed(model, evaluate=False), torch.enable_grad():
        graph, order, nodes = _graph(model, example_input)
        arrivals = _median([_arrivals(model, example_input, clock) for _ in range(ROUNDS)][1:])
    layers = converted_layers(model)
    owners = {id(p): n for n in order for p in layers[n].parameters(recurse=False)}
    cuts = []
    for length in range(len(order) + 1):
        live = graph.live(_outside(owners, set(order[:length])))
        silent = tuple(n for n in order if not any(inner in live for inner, _ in nodes[n]))
        upper = order[length] if length < len(order) else None
        below = 0.0
        if upper is None:
            below = 0.0 if live else arrivals.get("", 0.0)
        elif upper in silent and length:
            below = arrivals.get(upper, 0.0)
        cuts.append(Cut(tuple(order[:length]), silent, below))
    return tuple(cuts)


def _outside(owners: dict[int, str], frozen: set[str]) -> Callable[[int], bool]:
    return lambda parameter: owners.get(parameter) not in frozen


def _graph(
    model: nn.Module, example_input: Any
) -> tuple[BackwardGraph, list[str], dict[str, list[tuple[int | None, int | None]]]]:
    """The backward's graph, the layers by when they first ran, and each call's input and output."""
    graph = BackwardGraph()
    nodes: dict[str, list[tuple[int | None, int | None]]] = {}

    def noting(name: str) -> Callable[..., None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            pair = graph.node(inputs[0].grad_fn), graph.node(output.grad_fn)
            nodes.setdefault(name, []).append(pair)

        return note

    with _hooks(model, noting):
        outputs_with_graph(model, example_input)
    return graph, list(nodes), nodes


def _arrivals(model: nn.Module, example_input: Any, clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds from the last arrival of a gradient at each layer's outputs until the backward's
    end; "" from its beginning."""
    device = next(model.parameters()).device
    marks: dict[str, Any] = {}

    def noting(name: str) -> Callable[..., None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda gradient: marks.update({name: _mark(device, clock)}))

        return note

    parameters = [p for p in model.parameters() if p.requires_grad]
    with _hooks(model, noting):
        leaves = outputs_with_graph(model, example_input)
        ones = [torch.ones_like(leaf) for leaf in leaves]
        marks[""] = _mark(device, clock)
        torch.autograd.grad(leaves, parameters, ones, allow_unused=True)
    end = _mark(device, clock)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return {name: mark.elapsed_time(end) for name, mark in marks.items()}
    return {name: (end - mark) * 1e3 for name, mark in marks.items()}


def _mark(device: torch.device, clock: Callable[[], float]) -> Any:
    if device.type != "cuda":
        return clock()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _median(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(found[name] for found in rounds) for name in rounds[0]}


@contextmanager
def _hooks(model: nn.Module, noting: Callable[[str], Callable[..., None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, layer in converted_layers(model).items():
            stack.enter_context(layer.register_forward_hook(noting(name), prepend=True))
        yield
