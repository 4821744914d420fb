"""Which layers no gradient reaches any more, because whole layers above them are frozen with
``propagate="active"`` and let nothing through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from neq_kernels.layer import NEqLayer, changes


def unreached(model: nn.Module) -> list[str]:
    """Names of the modules of ``model`` with trainable parameters that the last eager forward cut
    off from its output."""
    return list(model.__dict__.get("_unreached", ()))


def after_forward(model: nn.Module, inputs: Any, output: Any) -> None:
    """Forward hook of a converted model: walk the graph once per change of the layers that cut."""
    state = model.__dict__
    if torch.compiler.is_compiling() or state.get("_seen_change") is changes.last:
        return
    if not torch.is_grad_enabled():
        return
    state["_seen_change"] = changes.last
    cuts = any(
        layer.active.is_empty and layer.propagate == "active"
        for layer in state["_neq_layers"]
        if isinstance(layer, NEqLayer)
    )
    state["_unreached"] = _names(model, output) if cuts else ()


def _names(model: nn.Module, output: Any) -> tuple[str, ...]:
    reached = _reached_parameters(output)
    return tuple(
        name
        for name, module in model.named_modules()
        if not (isinstance(module, NEqLayer) and module.active.is_empty)
        for parameters in [[p for p in module.parameters(recurse=False) if p.requires_grad]]
        if parameters and not any(id(p) in reached for p in parameters)
    )


def _reached_parameters(output: Any) -> set[int]:
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    waiting = [leaf.grad_fn for leaf in leaves if leaf.grad_fn is not None]
    seen, reached = set(waiting), set()
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        # A node in mode "cut" passes nothing on, and a tether only answers DDP's reducer.
        closed = getattr(node, "mode", None) == "cut"
        edges = node.next_functions[: 1 if hasattr(node, "tethered") else None]
        for child, _ in () if closed else edges:
            if child is not None and child not in seen:
                seen.add(child)
                waiting.append(child)
    return reached
