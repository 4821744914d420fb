"""The probe: the same batches at every pass, fed to the model."""

from __future__ import annotations

import copy
import ctypes
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Any], Any]
REMEDY = (
    "The probe must give the same batches in the same order every time: no shuffling, no "
    "augmentation, no random crops. One drawn once and kept, probe = list(loader), always does"
)


class Probe:
    """Batches that can be iterated over again and again, and the way to feed one to the model.

    A batch that is a tuple or list stands for its first item; a mapping is passed as keywords,
    anything else as the only argument. `forward(model, batch)` replaces both rules and gets the
    whole batch. Tensors are moved to the model's device first, however deeply they are nested.
    Raises TypeError for what cannot be such a probe.
    """

    def __init__(self, batches: Iterable[Any], forward: Forward | None = None) -> None:
        _check_batches(batches)
        if forward is not None and not callable(forward):
            raise TypeError(
                f"forward: expected a callable taking (model, batch), got {type(forward).__name__}"
            )
        self.batches = batches
        self.forward = forward

    def run(
        self,
        model: nn.Module,
        device: torch.device,
        expected: list[str] | None,
        runs: Sequence[Callable[[], AbstractContextManager[Any]]] = (nullcontext,),
    ) -> list[str]:
        """Feed every batch to the model, once inside each context of `runs`; return a digest per
        batch.

        Raises ValueError if there is no batch, or as soon as a batch differs from the `expected`
        digests.
        """
        digests = []
        for position, inputs in enumerate(self._inputs()):
            digests.append(digest(inputs))
            _check_same(digests, expected)
            try:
                for run in runs:
                    with run():
                        self._call(model, move(inputs, device))
            except Exception as error:
                _explain(
                    error,
                    f"raised on batch {position} of the probe: {describe(inputs)} on {device}",
                )
                raise
        if not digests and not expected:
            raise ValueError(
                "probe: expected at least one batch, got none; pass a few batches of training data"
            )
        _check_length(digests, expected)
        return digests

    def check_repeatable(self, expected: list[str]) -> None:
        """Iterate once more, without the model; ValueError where batches differ from `expected`."""
        digests: list[str] = []
        for inputs in self._inputs():
            digests.append(digest(inputs))
            _check_same(digests, expected)
        _check_length(digests, expected)

    def generators(self) -> list[torch.Generator]:
        """The random generators of a DataLoader's own, which iterating over it advances."""
        owners = (self.batches, getattr(self.batches, "sampler", None))
        found = (getattr(owner, "generator", None) for owner in owners)
        return [generator for generator in found if isinstance(generator, torch.Generator)]

    def _inputs(self) -> Iterator[Any]:
        for batch in self.batches:
            if self.forward is None and isinstance(batch, (tuple, list)):
                if not batch:
                    raise ValueError(
                        "probe: expected a batch with at least one item, got an empty sequence"
                    )
                yield batch[0]
            else:
                yield batch

    def _call(self, model: nn.Module, inputs: Any) -> None:
        if self.forward is not None:
            self.forward(model, inputs)
        elif isinstance(inputs, Mapping):
            model(**inputs)
        else:
            model(inputs)


def _check_batches(batches: Any) -> None:
    advice = "pass a DataLoader or a list of batches"
    if isinstance(batches, Iterator):
        raise TypeError(
            f"probe: expected batches that can be iterated over at every update, got a "
            f"{type(batches).__name__}, which is exhausted after one pass; pass list(probe)"
        )
    if isinstance(batches, (Tensor, Mapping, str, bytes)):
        raise TypeError(
            f"probe: expected an iterable of batches, got a single "
            f"{type(batches).__name__}; pass [probe]"
        )
    if not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        raise TypeError(
            f"probe: expected an iterable of batches, got {type(batches).__name__}; {advice}"
        )


def _check_same(digests: list[str], expected: list[str] | None) -> None:
    """Compare the newest digest with the one expected in its place."""
    position = len(digests) - 1
    if expected is None or (position < len(expected) and digests[-1] == expected[position]):
        return
    what = (
        "differs from the last pass"
        if position < len(expected)
        else "was not there in the last pass"
    )
    raise ValueError(f"probe: batch {position} {what}. {REMEDY}")


def _check_length(digests: list[str], expected: list[str] | None) -> None:
    if expected is not None and len(digests) < len(expected):
        raise ValueError(
            f"probe: expected {len(expected)} batches as in the last pass, got {len(digests)}; "
            f"was an iterator exhausted? {REMEDY}"
        )


def _explain(error: Exception, message: str) -> None:
    """Add to the model's own error, whose type stays, where it came up (from Python 3.11 on)."""
    if hasattr(error, "add_note"):
        error.add_note(f"neq_kernels: the model {message}. The model is as it was before update().")


def move(inputs: Any, device: torch.device) -> Any:
    """`inputs` with every tensor in it, and everything else that has `.to`, on `device`."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if hasattr(inputs, "to"):
        return copy.copy(inputs).to(device)  # transformers' batches would move in place
    if isinstance(inputs, Mapping):
        return {key: move(value, device) for key, value in inputs.items()}
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):
        return type(inputs)(*(move(value, device) for value in inputs))
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(move(value, device) for value in inputs)
    return inputs


def digest(inputs: Any) -> str:
    """A checksum of every tensor (bytes, dtype and shape), array, number and string in `inputs`.

    Objects of other types do not count, so a change in them goes unseen.
    """
    state = hashlib.blake2b(digest_size=16)
    _absorb(state.update, inputs)
    return state.hexdigest()


def _absorb(update: Callable[[bytes], None], inputs: Any) -> None:
    if isinstance(inputs, Tensor):
        update(f"tensor {inputs.dtype} {tuple(inputs.shape)}".encode())
        flat = inputs.detach().cpu().contiguous().flatten()
        update(ctypes.string_at(flat.data_ptr(), flat.nbytes))  # numpy() would need NumPy
    elif isinstance(inputs, Mapping):
        for key, value in inputs.items():
            update(f"key {key!r}".encode())
            _absorb(update, value)
    elif isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes)):
        update(f"sequence {len(inputs)}".encode())
        for value in inputs:
            _absorb(update, value)
    elif isinstance(inputs, (str, bytes, int, float, complex, bool, type(None))):
        update(repr(inputs).encode())
    elif hasattr(inputs, "tobytes"):
        update(f"array {inputs.dtype} {inputs.shape}".encode() + inputs.tobytes())


def describe(inputs: Any) -> str:
    """Types and shapes, for messages."""
    if isinstance(inputs, Tensor):
        return f"{str(inputs.dtype).removeprefix('torch.')} {list(inputs.shape)}"
    if isinstance(inputs, Mapping):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in inputs.items()) + "}"
    if isinstance(inputs, (tuple, list)):
        return f"{type(inputs).__name__} of " + ", ".join(describe(value) for value in inputs[:4])
    return type(inputs).__name__
