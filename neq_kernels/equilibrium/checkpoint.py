"""What `Equilibrium.state_dict` holds, and the check that a state fits before it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .velocity import get_definition

VERSION = 1
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
    }
)


def check(
    state: Mapping[str, Any],
    *,
    definition: str,
    exclude: Sequence[str] | None,
    sizes: Mapping[str, int],
    selector: str,
) -> None:
    """Raise ValueError unless `state` was saved by a tracker like the one described.

    Args:
        state: what was given to load_state_dict.
        definition, exclude: the tracker's arguments.
        sizes: neurons of every converted layer of its model, by name.
        selector: name of its selector's class.
    """
    if not isinstance(state, Mapping) or not set(state) >= KEYS or state["version"] != VERSION:
        raise ValueError("state: expected what Equilibrium.state_dict() of this version returned")
    _same("definition", definition, state["definition"])
    _same("exclude", None if exclude is None else list(exclude), state["exclude"])
    _same("selector", selector, state["selector"]["name"])
    _check_sizes(sizes, state["layers"])
    for name, saved in state["states"].items():
        _check_layer(name, saved, sizes[name], definition)


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
    if not all(isinstance(output, Tensor) for output in saved["outputs"]):
        raise ValueError(f"state: expected tensors as outputs of layer {name!r}")
