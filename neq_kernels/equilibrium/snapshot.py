"""A model's weights as they were, and running the model with them for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from .memory import Memory, pinned


class Snapshot:
    """Copies of the parameters and buffers of a model.

    Attributes:
        tensors: by name, as in `named_parameters` and `named_buffers`.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    @classmethod
    def take(cls, model: nn.Module, memory: Memory) -> Snapshot:
        """On the model's device if they fit `memory.device`, else in pinned host memory."""
        found = dict(_tensors(model))
        on_device = sum(t.nbytes for t in found.values()) <= memory.device
        return cls(
            {
                name: t.detach().clone()
                if on_device or t.device.type == "cpu"
                else pinned(t.detach())
                for name, t in found.items()
            }
        )

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def fits(self, model: nn.Module) -> bool:
        """Whether `model` has the same parameters and buffers, shape by shape."""
        here = {name: tensor.shape for name, tensor in model.named_parameters()}
        there = {name: self.tensors[name].shape for name in here if name in self.tensors}
        return here == there

    def network(self, model: nn.Module) -> Twin:
        """The model of then, to run beside the one of now."""
        return Twin(self, model)


class Twin:
    """`model` with the weights of a snapshot. A buffer that its forward changes goes on from there
    in the next run, as it does in the model itself; the snapshot stays."""

    def __init__(self, snapshot: Snapshot, model: nn.Module) -> None:
        self._model = model
        tensors = snapshot.tensors
        self._weights = [
            (parameter, tensors[name].to(parameter.device, non_blocking=True))
            for name, parameter in model.named_parameters()
        ]
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []
        copies: dict[int, Tensor] = {}
        for name, owner, key, buffer in _buffers(model):
            if name in tensors and id(buffer) not in copies:
                copies[id(buffer)] = tensors[name].to(buffer.device, copy=True)
            self._buffers.append((owner, key, copies.get(id(buffer), buffer)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model is the one of then. Objects and versions of its parameters stay, so
        that optimizers, hooks and graphs made before do not see it."""
        weights = [(parameter, parameter.data) for parameter, _ in self._weights]
        found = [(owner, key, owner._buffers[key]) for owner, key, _ in self._buffers]
        try:
            for parameter, then in self._weights:
                parameter.data = then
            for owner, key, buffer in self._buffers:
                owner._buffers[key] = buffer
            yield
        finally:
            for parameter, now in weights:
                parameter.data = now
            changed = [(owner, key, owner._buffers.get(key)) for owner, key, _ in self._buffers]
            self._buffers = [(o, key, b) for o, key, b in changed if isinstance(b, Tensor)]
            for owner, key, content in found:
                owner._buffers[key] = content


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    for name, _, _, buffer in _buffers(model):
        yield name, buffer


def _buffers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    for prefix, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None:
                yield f"{prefix}.{key}" if prefix else key, module, key, buffer
