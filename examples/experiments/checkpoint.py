"""The state of a run on disk: written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: Mapping[str, Any]) -> None:
    """A process killed while it writes leaves the checkpoint before intact."""
    fresh = path.with_suffix(".writing")
    with fresh.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def load(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The checkpoint, on the CPU, or None where there is none.

    Raises:
        ValueError: it is of a run with other settings.
    """
    if not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    differing = {
        name: (state["settings"].get(name), value)
        for name, value in settings.items()
        if state["settings"].get(name) != value
    }
    if differing:
        told = "; ".join(
            f"{name}: there {was!r}, now {now!r}" for name, (was, now) in differing.items()
        )
        raise ValueError(
            f"{path}: expected a run with these settings, got one that differs ({told}); "
            "choose another --output-dir, or remove that one"
        )
    return state


def random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
