"""What a backward pass costs, and what it would cost if only active neurons did."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neq_kernels import ActiveSet

MULTIPLIES = (nn.Conv2d, nn.Linear)


def clock(device: str) -> float:
    """Seconds, once everything queued on ``device`` is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Ceiling:
    """The backward time if every active neuron's weight gradient cost exactly its share.

    For ``propagate="all"``: floor + share * wgrad, where

    * wgrad = the dense backward less the backward with all weight gradients off, both measured;
    * share = the active share of the weight gradients' multiplications;
    * floor = the backward with all weight gradients off, measured, as deep as it must still go: to
      the first layer that has an active neuron. Layers below it need no backward at all.

    For ``propagate="active"`` every gradient shrinks: share * the dense backward.

    Measured on ``twin``, a plain network of the same shape whose values do not matter and which is
    never trained; it must run its layers one after the other, as ResNets do. A floor is measured
    when its depth first comes up, in turns with the twin's own dense backward, and kept as a share
    of it: so it follows a machine that slows down, and costs no time in later epochs.
    """

    def __init__(
        self, twin: nn.Module, batch: tuple[Tensor, Tensor], propagate: str, repeats: int = 5
    ) -> None:
        self.twin = twin.train()
        self.batch = batch
        self.propagate = propagate
        self.repeats = repeats
        self.layers = _layers_in_order(twin, batch[0])
        self._floors: dict[int, float] = {}
        # The first pass builds kernels and claims memory: not a time anybody wants to read.
        F.cross_entropy(self.twin(batch[0]), batch[1]).backward()

    def wgrad_share(self, active: Mapping[str, ActiveSet]) -> float:
        """Active share of the weight gradients' multiplications, 0 to 1."""
        total = sum(macs for _, _, macs in self.layers)
        computed = sum(
            macs * active[name].count / active[name].size for name, _, macs in self.layers
        )
        return computed / total

    def milliseconds(self, active: Mapping[str, ActiveSet], dense_ms: float) -> float:
        """The ceiling for these sets, given the dense backward's time measured just before."""
        share = self.wgrad_share(active)
        if self.propagate == "active":
            return share * dense_ms
        depths = {0, self._first_active(active)}
        floors = {depth: self._floor_share(depth) * dense_ms for depth in depths}
        wgrad = max(0.0, dense_ms - floors[0])
        # A disturbed measurement of the floor must not put the ceiling above the dense time.
        return min(dense_ms, floors[max(depths)] + share * wgrad)

    def _first_active(self, active: Mapping[str, ActiveSet]) -> int:
        counts = [active[name].count for name, _, _ in self.layers]
        return next((i for i, count in enumerate(counts) if count), len(counts))

    def _floor_share(self, depth: int) -> float:
        """Backward down to layer ``depth`` without weight gradients, as a share of all of it.

        Norms' gammas and betas keep the path open: their gradients come with the norm's dgrad.
        """
        if depth not in self._floors:
            times: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(self.repeats):
                for whole in times:
                    self._require(0 if whole else depth, weights=whole)
                    times[whole].append(self._backward_ms())
            self._floors[depth] = median(times[False]) / median(times[True])
        return self._floors[depth]

    def _require(self, depth: int, weights: bool) -> None:
        for i, (_, layer, _) in enumerate(self.layers):
            for name, parameter in layer.named_parameters():
                multiplies = isinstance(layer, MULTIPLIES) and name == "weight"
                parameter.requires_grad_(i >= depth and (weights or not multiplies))

    def _backward_ms(self) -> float:
        images, labels = self.batch
        device = str(images.device)
        loss = F.cross_entropy(self.twin(images), labels)
        self.twin.zero_grad()
        if not loss.requires_grad:
            return 0.0
        started = clock(device)
        loss.backward()
        return (clock(device) - started) * 1e3


def _layers_in_order(model: nn.Module, images: Tensor) -> list[tuple[str, nn.Module, int]]:
    """(name, layer, multiplications of its weight gradient) of every layer, as they run."""
    found: list[tuple[str, nn.Module, int]] = []

    def recorder(name: str, layer: nn.Module):
        def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            macs = 0
            if isinstance(layer, MULTIPLIES):
                macs = output.numel() // layer.weight.shape[0] * layer.weight.numel()
            found.append((name, layer, macs))

        return layer.register_forward_hook(record)

    layers = [
        (n, m) for n, m in model.named_modules() if isinstance(m, (*MULTIPLIES, nn.BatchNorm2d))
    ]
    hooks = [recorder(name, layer) for name, layer in layers]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return found
