"""What a tracker remembers from one pass over the probe to the next: the outputs, on the device or
in pinned host memory, in full or half precision, or the weights alone.

In half precision a channel is stored as y / s in fp16, s the power of two above its largest |y|:
no output is too large for it, and the only error is one rounding, at most 2^-11 of each output
that is not 2^14 times smaller than the largest of its channel. In a cosine of n values that is an
error of about 2^-12 / sqrt(n), below 1e-4 from a handful on. Outputs with one or two values per
channel, which take next to no room, stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KEEP = ("auto", "outputs", "weights")
DTYPES = (None, torch.float16, torch.float32)
WEIGHTS = "weights"
# Values per channel from which on an output is halved.
MANY = 3
# In the order in which they are tried: exact ones first.
LEVELS = ("device", "host", "device half", "host half")


@dataclass(frozen=True)
class Memory:
    """What an `Equilibrium` may remember, and how many bytes that may take.

    Attributes:
        keep: "outputs" of all measured layers; "weights", a copy of the model's parameters and
            buffers, with which the network of the last pass runs again beside the one of now: no
            more than one batch's outputs are held, for twice the forward time; or "auto": outputs
            if they fit, else weights.
        device, host: budgets in bytes for outputs on the model's device and in pinned host memory.
            They hold for the peak, while two passes' outputs are there. Of a model on the CPU
            `host` is the only one. The first that fits is taken: on the device or the host as the
            layers put them out, then on the device or the host in fp16.
        dtype: torch.float32 never halves; torch.float16 always does; None as above. Outputs that
            are half precision already stay what they are.

    Raises:
        ValueError: another `keep` or `dtype`, or a negative budget.
    """

    keep: str = "auto"
    device: int = 2 << 30
    host: int = 8 << 30
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.keep not in KEEP:
            raise ValueError(f"memory: expected one of {', '.join(KEEP)}, got {self.keep!r}")
        if self.dtype not in DTYPES:
            raise ValueError(
                f"dtype: expected torch.float32, torch.float16 or None, got {self.dtype!r}"
            )
        for name, budget in (("device", self.device), ("host", self.host)):
            if budget < 0:
                raise ValueError(f"{name}: expected a budget in bytes >= 0, got {budget!r}")

    def budgets(self, device: torch.device) -> dict[str, int]:
        """Bytes of one pass's outputs that each level takes, in the order to try them."""
        allowed = {None: LEVELS, torch.float32: LEVELS[:2], torch.float16: LEVELS[2:]}[self.dtype]
        if self.keep == WEIGHTS:
            return {}
        return {
            level: (self.host if level.startswith("host") else self.device) // 2
            for level in allowed
            if device.type != "cpu" or level.startswith("host")
        }


def memory_of(memory: str | Memory) -> Memory:
    """`memory` itself, or what the name of a `keep` stands for; TypeError for anything else."""
    if isinstance(memory, Memory):
        return memory
    if not isinstance(memory, str):
        raise TypeError(
            f"memory: expected one of {', '.join(KEEP)} or a Memory, got {type(memory).__name__}"
        )
    return Memory(memory)


class Kept:
    """One output, kept at some level.

    Attributes:
        values: the output, or y / scale in fp16.
        scale: fp32, one power of two per channel, broadcasting to the output; or None.
    """

    def __init__(self, values: Tensor, scale: Tensor | None, dtype: torch.dtype) -> None:
        self.values, self.scale, self.dtype = values, scale, dtype

    @classmethod
    def of(cls, output: Tensor) -> Kept:
        """A copy, where the output is and in its dtype."""
        return cls(output.clone(), None, output.dtype)

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def output(self, device: torch.device) -> Tensor:
        """The output on `device`, in its own dtype."""
        values = self.values.to(device, non_blocking=True)
        if self.scale is None:
            return values
        return (values.to(self.dtype) * self.scale.to(device, self.dtype)).to(self.dtype)

    def to(self, level: str, device: torch.device, axis: int) -> None:
        """Keep it at `level` from now on; half precision is not undone."""
        if level.endswith("half") and self.scale is None and _halves(self.values, axis):
            values = self.values.to(device)
            self.scale = power_of_two_above(values, axis)
            self.values = (values / self.scale).half()
        if level.startswith("host"):
            self.values = pinned(self.values)
        else:
            self.values = self.values.to(device, non_blocking=True)


def _halves(output: Tensor, axis: int) -> bool:
    return output.element_size() > 2 and output.numel() >= MANY * output.shape[axis]


def power_of_two_above(values: Tensor, axis: int) -> Tensor:
    """Per channel of `axis`, fp32: the least power of two above every |value|, 1 for zeros."""
    others = [dim for dim in range(values.dim()) if dim != axis % values.dim()]
    largest = values.abs().amax(others, keepdim=True) if others else values.abs()
    exponent = torch.frexp(largest.double()).exponent.clamp(-126, 127)
    return torch.where(largest > 0, torch.exp2(exponent.double()), 1.0).float()


def pinned(tensor: Tensor) -> Tensor:
    """A copy in the host's memory, pinned for a GPU's sake; itself if it is on the CPU."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(
        tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda", device="cpu"
    )
    return host.copy_(tensor, non_blocking=True)


class Store:
    """Keeps the outputs of one pass at the first level that has room for all of them.

    Attributes:
        level: where they are now, one of `LEVELS`, or "weights": nothing is kept.
    """

    def __init__(self, memory: Memory, device: torch.device, level: str | None = None) -> None:
        self._memory, self._device = memory, device
        self._budgets = memory.budgets(device)
        if level is not None and level in self._budgets:
            # Higher ones had no room in an earlier pass.
            names = list(self._budgets)
            self._budgets = {n: self._budgets[n] for n in names[names.index(level) :]}
        self.level = WEIGHTS if level == WEIGHTS else next(iter(self._budgets), WEIGHTS)
        self._kept: list[tuple[Kept, int]] = []
        self._full = self._half = 0

    @property
    def nbytes(self) -> int:
        """Of what is kept now."""
        return 0 if self.level == WEIGHTS else self._size(self.level)

    def keep(self, output: Tensor, axis: int) -> Kept | None:
        """Keep a copy of `output`, whose channels are along `axis`; None at level "weights".

        Raises:
            ValueError: no level has room, and only outputs may be kept.
        """
        self._full += output.nbytes
        self._half += 2 * output.numel() if _halves(output, axis) else output.nbytes
        while self.level != WEIGHTS and self._size(self.level) > self._budgets[self.level]:
            self._demote()
        if self.level == WEIGHTS:
            return None
        kept = Kept.of(output)
        kept.to(self.level, self._device, axis)
        self._kept.append((kept, axis))
        return kept

    def _size(self, level: str) -> int:
        return self._half if level.endswith("half") else self._full

    def _demote(self) -> None:
        del self._budgets[self.level]
        self.level = next(iter(self._budgets), WEIGHTS)
        if self.level == WEIGHTS:
            if self._memory.keep != "auto":
                raise ValueError(
                    f"memory: expected the outputs of the probe within {self._memory}, got "
                    f"{megabytes(2 * self._full)} so far, for two passes; raise the budgets, take "
                    'a smaller probe, or pass memory="weights"'
                )
            self._kept.clear()
        for kept, axis in self._kept:
            kept.to(self.level, self._device, axis)


def megabytes(nbytes: int) -> str:
    """For messages."""
    return f"{nbytes / 1e6:.3g} MB"
