"""Whole training steps on a GPU as neurons freeze, eager and compiled.

Beside the providers of bench.train, "gradients off": torch's network whose layers compute neither
gradient, and pass on numbers drawn beforehand instead. ``propagate="active"`` can come no closer
than that, plus the active share of what the gradients take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

import neq_kernels as neq
from bench import train
from bench.harness import Row
from bench.models import Network
from bench.train import Contender, contender, draw, multiplying, skip_naively, zeroing

SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)
MODES = ("eager", "compiled")
NEVER_COMPILED = ("naive",)  # Python lists of neurons would be compiled anew for every set


class _GradientsOff(Function):
    """A layer's output, as if it depended on ``x`` by a gradient that is known: ``drawn``."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, drawn: Tensor) -> Tensor:
        ctx.save_for_backward(drawn)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor | None, None]:
        (drawn,) = ctx.saved_tensors
        return None, drawn if ctx.needs_input_grad[1] else None, None


def gradients_off(model: nn.Module) -> Contender:
    """``model`` without the gradients of its layers; its parameters do not learn."""
    drawn: dict[Any, Tensor] = {}

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = type(self).forward(self, x.detach())
        key = (x.shape, x.stride(), x.dtype)
        if key not in drawn:
            drawn[key] = torch.randn_like(x) * 1e-3
        return _GradientsOff.apply(y, x, drawn[key])

    made = contender(deepcopy(model))
    for name in multiplying(model):
        layer = made.model.get_submodule(name)
        layer.requires_grad_(False)
        layer.forward = MethodType(forward, layer)
    return made


class Runners:
    """Every provider of one network, made once: neither sets nor shares compile anything anew."""

    def __init__(self, network: Network, mode: str, device: str, backend: str) -> None:
        torch.manual_seed(0)
        layout = network.layouts[0]
        self.network, self.mode, self.layout = network, mode, layout
        self.model, self.batch = network.build(device, layout)
        everything = draw(self.model, "random", 1.0)
        self.made = {
            "dense": contender(deepcopy(self.model)),
            "dense again": contender(deepcopy(self.model)),
            "wgrad off": train.frozen_layers(self.model, everything),
            "gradients off": gradients_off(self.model),
            "masked": contender(deepcopy(self.model)),
            "naive": contender(deepcopy(self.model)),
        }
        for name, propagate in train.OURS.items():
            self.made[name] = contender(deepcopy(self.model), everything, propagate)
        if mode == "compiled":
            for name in NEVER_COMPILED:
                del self.made[name]
            for one in self.made.values():
                one.compiled = torch.compile(one.model, dynamic=False, backend=backend)

    def measure(self, share: float, rounds: int) -> list[Row]:
        """Rows with ``share`` of the neurons of every layer active."""
        sets = draw(self.model, "random", share)
        for name in train.OURS:
            neq.set_active(self.made[name].model, sets)
        self.made["masked"].after = zeroing(self.made["masked"].model, sets)
        if "naive" in self.made:
            skip_naively(self.made["naive"].model, sets)
        times = train.take_turns(self.network, self.batch, self.made, rounds)
        part = train.wgrad_share(self.model, self.batch, sets)
        geometry = f"{self.network.name} @ {'x'.join(map(str, self.batch.shape))}, random"
        return train.rows_of(
            geometry, self.network.precision, self.layout, share, times, part, self.mode
        )


def units(
    networks: Mapping[str, Network], device: str, rounds: int = 7,
    shares: Sequence[float] = SHARES, backend: str = "inductor",
) -> dict[str, Callable[[], list[Row]]]:  # fmt: skip
    """Every measurement by name. A network is made, and compiled, when its first share comes, and
    let go when the next network's does."""
    last: dict[str, Runners] = {}

    def measure(key: str, mode: str, share: float) -> list[Row]:
        if f"{key} {mode}" not in last:
            last.clear()
            torch.compiler.reset()
            if torch.device(device).type == "cuda":
                torch.cuda.empty_cache()
            last[f"{key} {mode}"] = Runners(networks[key], mode, device, backend)
        return last[f"{key} {mode}"].measure(share, rounds)

    def names() -> Iterator[tuple[str, str, float]]:
        for mode in MODES:
            for key in networks:
                for share in sorted(shares, key=lambda share: abs(share - 0.1)):
                    yield key, mode, share

    return {
        f"{key}, {mode}, {share}": partial(measure, key, mode, share)
        for key, mode, share in names()
    }
