"""The active sets of many layers at once, and what it takes to know them on the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neq_kernels import backends
from neq_kernels.active import ActiveSet


def sets_of(masks: Sequence[Tensor]) -> list[ActiveSet]:
    """The set of each mask (bool, ``[size]``, on any device), with one copy to the host per device
    they are on."""
    sets: list[ActiveSet | None] = [None] * len(masks)
    for places in _by_device(masks):
        group = [masks[place].detach() for place in places]
        _, compact = backends.resolve("compact", group[0].device.type)
        lists = compact(group).cpu()
        counts = lists[: len(group)].tolist()
        parts = lists[len(group) :].split([mask.numel() for mask in group])
        for place, part, count in zip(places, parts, counts, strict=True):
            # A copy: a view would carry the lists of all layers wherever it is saved.
            sets[place] = ActiveSet(part[:count].clone(), part.numel())
    return [active for active in sets if active is not None]


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Vectors of one dtype on the CPU, with one copy per device they are on."""
    found: dict[int, Tensor] = {}
    for places in _by_device(tensors):
        group = [tensors[place] for place in places]
        parts = torch.cat(group).cpu().split([vector.numel() for vector in group])
        found.update(zip(places, parts, strict=True))
    return [found[place] for place in range(len(tensors))]


def _by_device(tensors: Sequence[Tensor]) -> list[list[int]]:
    groups: dict[torch.device, list[int]] = {}
    for place, tensor in enumerate(tensors):
        groups.setdefault(tensor.device, []).append(place)
    return list(groups.values())
