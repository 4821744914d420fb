"""Several processes that decide as one: sums of all, the choice of the first, errors of any."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from neq_kernels.active import ActiveSet

WORLD = "world"


class Peers:
    """The processes of a group. Alone, or without one, every method gives back what it was given.

    Args:
        group: a process group; "world": all processes if torch.distributed is initialised, which is
            asked anew at every use; None: nothing is exchanged.

    Raises:
        TypeError: anything else.
    """

    def __init__(self, group: Any = WORLD) -> None:
        known = dist.ProcessGroup if dist.is_available() else ()
        if not (group is None or group == WORLD or isinstance(group, known)):
            raise TypeError(
                'process_group: expected a ProcessGroup, "world" or None, got '
                f"{type(group).__name__}"
            )
        self._group = group

    @property
    def size(self) -> int:
        """Processes in the group."""
        if self._group is None or not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self._handle)

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each of `tensors` (one dtype, on the CPU) summed over the processes, in one exchange."""
        if self.size == 1 or not tensors:
            return list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors]).to(self._device)
        dist.all_reduce(flat, group=self._handle)
        parts = flat.cpu().split([tensor.numel() for tensor in tensors])
        return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]

    def first(self, sets: Mapping[str, ActiveSet]) -> dict[str, ActiveSet]:
        """The sets that rank 0 of the group has, of the same layers."""
        if self.size == 1 or not sets:
            return dict(sets)
        flat = torch.cat([active.mask() for active in sets.values()]).to(torch.uint8)
        flat = flat.to(self._device)
        dist.broadcast(flat, group=self._handle, group_src=0)
        masks = flat.cpu().bool().split([active.size for active in sets.values()])
        return {name: ActiveSet.from_mask(mask) for name, mask in zip(sets, masks, strict=True)}

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """If the body raises on one rank it raises on all: nobody goes on, or waits, alone.

        Raises:
            RuntimeError: the body raised on another rank.
        """
        error: BaseException | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        failed = self.gather(error is not None)
        if error is not None:
            raise error
        if any(failed):
            ranks = ", ".join(str(rank) for rank, flag in enumerate(failed) if flag)
            raise RuntimeError(
                f"{what}: failed on rank {ranks}, whose error says why; nothing was changed here"
            )

    def alike(self, mine: object) -> None:
        """Raise ValueError unless `mine`, what a tracker is and has done, looks the same on every
        rank."""
        found = self.gather(zlib.crc32(repr(mine).encode()))
        if len(set(found)) > 1:
            raise ValueError(
                "process_group: expected trackers of the same model and settings after as many "
                f"updates on every rank, got {len(set(found))} different ones; load the same "
                "state on all, or pass process_group=None to measure each on its own"
            )

    def gather(self, number: int) -> list[int]:
        """The `number` of every rank."""
        if self.size == 1:
            return [int(number)]
        mine = torch.tensor([int(number)], dtype=torch.int64, device=self._device)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine, group=self._handle)
        return [int(tensor) for tensor in found]

    @property
    def _handle(self) -> Any:
        return None if self._group == WORLD else self._group

    @property
    def _device(self) -> torch.device:
        config = str(dist.get_backend_config(self._handle))
        return torch.device("cpu" if "cpu:" in config else "cuda")
