"""Tie the parameters of frozen layers to the output of a model.

A frozen prefix of the network is not part of the autograd graph, but the reducer of
DistributedDataParallel waits for every parameter; and a network frozen whole has no graph, so that
``loss.backward()`` would raise. A node at the output that hands each of those parameters the
gradient None answers both, and runs no backward below.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from neq_kernels.layer import NEqLayer, distributed, transforming


class Tether(Function):
    """``output`` unchanged; ``parameters`` get the gradient None."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, *parameters: Tensor) -> Tensor:
        ctx.tethered = len(parameters)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, *(None,) * ctx.tethered


def after_forward(model: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook of a converted model: the output, tethered where somebody needs it to be."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or transforming():
        return None
    everywhere = distributed()
    if not everywhere and isinstance(output, Tensor) and output.requires_grad:
        return None
    parameters = [
        parameter
        for module in model.__dict__["_neq_layers"]
        if isinstance(module, NEqLayer) and module.active.is_empty
        for _, parameter, _ in module.neuron_parameters()
        if parameter.requires_grad
    ]
    if not parameters:
        return None
    in_graph: list[bool] = []
    _map_tensors(output, lambda tensor: in_graph.append(tensor.requires_grad) or tensor)  # type: ignore[func-returns-value]
    if any(in_graph) and not everywhere:
        return None

    def tie(tensor: Tensor) -> Tensor:
        needs = tensor.requires_grad or not any(in_graph)
        return Tether.apply(tensor, *parameters) if needs else tensor

    return _map_tensors(output, tie)


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with ``function`` applied to its floating-point tensors, containers kept."""
    if isinstance(value, Tensor):
        return function(value) if value.is_floating_point() else value
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _map_tensors(item, function)
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map_tensors(item, function) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(item, function) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        made = copy(value)
        for name in (field.name for field in fields(value)):
            # Frozen dataclasses, and fields that __init__ does not take, are set this way only.
            object.__setattr__(made, name, _map_tensors(getattr(value, name), function))
        return made
    return value
