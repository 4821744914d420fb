"""What `Equilibrium.state_dict` holds, and the check that a state fits before it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .measure import Carried, LayerState
from .memory import Kept
from .selectors.base import described, settings
from .snapshot import Snapshot
from .velocity import get_definition

VERSION = 3
KEYS = frozenset(
    {
        "version",
        "definition",
        "momentum",
        "warmup",
        "exclude",
        "excluded",
        "head",
        "passes",
        "plan",
        "digests",
        "layers",
        "states",
        "selector",
        "memory",
        "history",
    }
)


def check(
    state: Mapping[str, Any],
    *,
    model: nn.Module,
    definition: str,
    exclude: Sequence[str] | None,
    sizes: Mapping[str, int],
    selector: Any,
) -> None:
    """Raise ValueError unless `state` was saved by a tracker like the one described.

    Args:
        state: what was given to load_state_dict.
        model: the tracker's.
        definition, exclude: the tracker's arguments.
        sizes: neurons of every converted layer of its model, by name.
        selector: its selector.
    """
    if not isinstance(state, Mapping) or not set(state) >= KEYS or state["version"] != VERSION:
        raise ValueError("state: expected what Equilibrium.state_dict() of this version returned")
    _same("definition", definition, state["definition"])
    _same("exclude", None if exclude is None else list(exclude), state["exclude"])
    same_selector(selector, state["selector"])
    _check_sizes(sizes, state["layers"])
    for name, saved in state["states"].items():
        _check_layer(name, saved, sizes[name], definition)
    snapshot = state["memory"]["snapshot"]
    if snapshot is not None and not Snapshot(snapshot).fits(model):
        raise ValueError(
            "state: expected weights of the shapes of this model, got others; load the state into "
            "a tracker of the model it was saved with"
        )


def saved(carried: Carried) -> dict[str, Any]:
    """What one pass hands on, in plain values and tensors."""
    snapshot = carried.snapshot
    return {
        "digests": carried.digests,
        "states": {
            name: {"track": state.track, "outputs": [_output(kept) for kept in state.outputs]}
            for name, state in carried.states.items()
        },
        "memory": {
            "level": carried.level,
            "nbytes": carried.nbytes,
            "snapshot": None if snapshot is None else snapshot.tensors,
        },
    }


def _output(kept: Kept) -> Any:
    """A tensor, or in half precision values, scale and the dtype they stand for."""
    if kept.scale is None:
        return kept.values
    return {"values": kept.values, "scale": kept.scale, "dtype": kept.dtype}


def restored(state: Mapping[str, Any], model: nn.Module) -> Carried:
    """What `state` carries on, as copies, on the device of each layer or on the host as before."""
    level, snapshot = state["memory"]["level"], state["memory"]["snapshot"]

    def place(tensor: Tensor, device: torch.device) -> Tensor:
        on_host = level is not None and level.startswith("host")
        return tensor.to("cpu" if on_host else device, copy=True)

    def kept(output: Any, device: torch.device) -> Kept:
        if isinstance(output, Tensor):
            return Kept(place(output, device), None, output.dtype)
        scale = output["scale"].to(device, copy=True)
        return Kept(place(output["values"], device), scale, output["dtype"])

    states = {}
    for name, layer in state["states"].items():
        device = next(model.get_submodule(name).parameters()).device
        track = {key: value.cpu().clone() for key, value in layer["track"].items()}
        states[name] = LayerState(track, [kept(output, device) for output in layer["outputs"]])
    copies = None
    if snapshot is not None:
        device = next(model.parameters()).device
        copies = Snapshot({n: tensor.to(device, copy=True) for n, tensor in snapshot.items()})
    return Carried(states, level, state["memory"]["nbytes"], copies, state["digests"])


def selector_state(selector: Any) -> dict[str, Any]:
    """What the selector was made with, and what it carries over updates."""
    save = getattr(selector, "state_dict", None)
    return {**settings(selector), "state": save() if save else None}


def same_selector(selector: Any, state: Mapping[str, Any]) -> None:
    """Raise ValueError unless `selector` was made as the one that `selector_state` saved."""
    ours, theirs = settings(selector), {key: state[key] for key in ("name", "settings")}
    if ours != theirs:
        raise ValueError(
            f"state: expected a run with selector {described(ours)} as it is here, got one with "
            f"{described(theirs)}; make the selector with the arguments of the saved run's"
        )


def _same(argument: str, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        raise ValueError(
            f"state: expected {argument}={ours!r} as in this tracker, got {argument}={theirs!r}; "
            "make the tracker with the arguments of the saved one"
        )


def _check_sizes(sizes: Mapping[str, int], layers: Mapping[str, Any]) -> None:
    remedy = "load the state into a tracker of the model it was saved with"
    if set(sizes) != set(layers):
        lacking, unknown = sorted(set(sizes) - set(layers)), sorted(set(layers) - set(sizes))
        raise ValueError(
            f"state: expected the converted layers of this model, got one without "
            f"{lacking[:4]} and with the unknown {unknown[:4]}; {remedy}"
        )
    for name, size in sizes.items():
        if layers[name].shape != (size,):
            raise ValueError(
                f"state: expected {size} neurons in layer {name!r}, got {layers[name].numel()}; "
                f"{remedy}"
            )


def _check_layer(name: str, saved: Mapping[str, Any], size: int, definition: str) -> None:
    expected = {key: value.shape for key, value in get_definition(definition).start(size).items()}
    got = {key: value.shape for key, value in saved["track"].items()}
    if got != expected:
        raise ValueError(f"state: expected {expected} for layer {name!r}, got {got}")
    known = (Tensor, dict)
    if not all(isinstance(output, known) for output in saved["outputs"]):
        raise ValueError(f"state: expected tensors as outputs of layer {name!r}")
