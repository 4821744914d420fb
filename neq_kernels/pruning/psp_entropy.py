"""How class-specific the units of a network are: the entropy of their post-synaptic potentials."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neq_kernels.equilibrium.probe import move
from neq_kernels.equilibrium.undisturbed import undisturbed, unwrapped

from .layers import channel_axis, connects, prunable

LOW, HIGH = 1e-4, 0.9999


def psp_entropy(
    model: nn.Module,
    loader: Iterable[tuple[Any, Tensor]],
    *,
    per: Literal["position", "channel"] = "position",
    layers: Iterable[str] | None = None,
    classes: int | None = None,
) -> dict[str, Tensor]:
    """First-order PSP-entropy of every unit for every class, in bits.

        H[u, c] = -(P log2 P + N log2 N),   P = share of the samples of class c with output > 0

    N = 1 - P, both clamped to [1e-4, 0.9999] (ICANN 2020, arXiv 2004.14765). Sum over c for the
    entropy of a unit. The second order, over pairs of classes, is left out: no definition of it
    could be established. Runs in eval mode, without gradients; what is kept grows with units times
    classes, not with the loader.

    Args:
        model: a classifier.
        loader: batches ``(inputs, labels)``, labels whole numbers ``[B]``.
        per: what a unit is: each scalar of a layer's output, or each channel, whose samples then
            are all positions of all samples.
        layers: name patterns (``fnmatch``) of modules; None: Linear and convolution layers. Where
            batch norms follow those, name the norms: theirs is the potential the activation sees.
        classes: how many there are; None: the second size of the model's output.

    Returns:
        By layer, fp64 ``[units, classes]`` on the CPU; NaN for a class without samples.

    Raises:
        ValueError: unknown ``per``, a pattern that matches nothing, no batch, a label that is not a
            class, as many labels as there are not samples, or outputs whose shape varies.
        TypeError: labels are not whole numbers, or a layer's output is not a tensor.
    """
    if per not in ("position", "channel"):
        raise ValueError(f"per: expected 'position' or 'channel', got {per!r}")
    inner = unwrapped(model)
    counts = {name: _Counts(name, per, axis) for name, axis in _chosen(inner, layers).items()}
    device = next(inner.parameters()).device
    with undisturbed(inner), ExitStack() as stack:
        for name, count in counts.items():
            layer = inner.get_submodule(name)
            stack.enter_context(layer.register_forward_hook(count.note, prepend=True))
        batch = None
        for batch in loader:
            inputs, labels = move(tuple(batch), device)
            _check_labels(labels)
            output = inner(inputs)
            if classes is None:
                classes = _width(output)
            member = _membership(labels, classes)
            for count in counts.values():
                count.add(member)
        if batch is None:
            raise ValueError("loader: expected at least one batch, got none")
    return {name: count.entropy() for name, count in counts.items() if count.ran}


class _Counts:
    """How often each unit of a layer was above zero, by class."""

    def __init__(self, name: str, per: str, axis: int) -> None:
        self.name, self.per, self.axis = name, per, axis
        self._pending: list[tuple[Tensor, int]] = []
        self._positive: Tensor | None = None
        self._samples = torch.zeros(0)

    @property
    def ran(self) -> bool:
        return self._positive is not None

    def note(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """Forward hook."""
        if not isinstance(output, Tensor):
            raise TypeError(
                f"layers: expected modules that return a tensor, but {self.name!r} returned a "
                f"{type(output).__name__}"
            )
        # At once: an in-place activation may overwrite the output next.
        above = (output > 0).float()
        if self.per == "channel":
            above = above.movedim(self.axis, -1).reshape(len(output), -1, output.shape[self.axis])
            self._pending.append((above.sum(1), above.shape[1]))
        else:
            self._pending.append((above.flatten(1), 1))

    def add(self, member: Tensor) -> None:
        """Take in one batch, ``member`` fp32 ``[B, classes]`` telling who is of which class."""
        for above, positions in self._pending:
            if len(above) != len(member):
                raise ValueError(
                    f"loader: expected a label per sample, got {len(member)} labels for "
                    f"{len(above)} samples in layer {self.name!r}"
                )
            positive = (above.T @ member).double()
            if self._positive is None:
                self._positive = torch.zeros_like(positive)
                self._samples = torch.zeros_like(positive[0])
            if positive.shape != self._positive.shape:
                raise ValueError(
                    f"loader: expected outputs of one shape, but layer {self.name!r} gave "
                    f"{len(self._positive)} units, then {len(positive)}; per='channel' does not "
                    "depend on it"
                )
            self._positive += positive
            self._samples += positions * member.sum(0).double()
        self._pending.clear()

    def entropy(self) -> Tensor:
        """H, in bits."""
        assert self._positive is not None
        share = (self._positive / self._samples).cpu()
        above, below = share.clamp(LOW, HIGH), (1 - share).clamp(LOW, HIGH)
        return -(above * above.log2() + below * below.log2())


def _chosen(model: nn.Module, patterns: Iterable[str] | None) -> dict[str, int]:
    """Names of the layers, with the axis that counts the channels of their output."""
    if patterns is None:
        found = {name: m for name, m in prunable(model).items() if connects(m)}
    else:
        found = {}
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            named = {n: m for n, m in model.named_modules() if n and fnmatch(n, pattern)}
            if not named:
                raise ValueError(
                    f"layers: expected patterns that match a module, but {pattern!r} matches none; "
                    "see model.named_modules()"
                )
            found.update(named)
    return {name: channel_axis(module) for name, module in found.items()}


def _check_labels(labels: Any) -> None:
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
        got = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else (
            type(labels).__name__
        )  # fmt: skip
        raise TypeError(f"loader: expected labels as whole numbers [B], got {got}")


def _width(output: Any) -> int:
    if not isinstance(output, Tensor) or output.dim() < 2:
        raise ValueError(
            "classes: expected a model that returns scores [B, classes], got "
            f"{tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__}; "
            "pass classes="
        )
    return output.shape[1]


def _membership(labels: Tensor, classes: int) -> Tensor:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.numel():
        raise ValueError(
            f"loader: expected labels in [0, {classes}), one for each output of the model, got "
            f"{int(wrong[0])}; pass classes= if there are more classes than outputs"
        )
    return nn.functional.one_hot(labels.long(), classes).float()
