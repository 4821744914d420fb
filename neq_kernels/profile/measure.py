"""How long a backward takes: dense, without its weight gradient, and every way at every share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

import torch
from torch import Tensor

from neq_kernels import planner
from neq_kernels.active import Lists, lists
from neq_kernels.gradients import (
    Needed,
    conv_geometry,
    conv_gradients,
    linear_geometry,
    linear_gradients,
)
from neq_kernels.profile.calls import Call

Clock = Callable[[], float]
# More than a last-level cache's share: a layer in a network finds its inputs there no more either.
COLD_BYTES = 64 << 20
MOST_SETS = 8
LEAST_ROUNDS, MOST_ROUNDS = 5, 50


class Bench:
    """One call's backward on random numbers, by any path and with any count of active neurons."""

    def __init__(self, call: Call) -> None:
        self.call = call
        x, dy = call.x.make(), call.dy.make()
        sets = min(MOST_SETS, -(-COLD_BYTES // max(x.nbytes + dy.nbytes, 1)))
        self._inputs = [(x, dy)] + [(call.x.make(), call.dy.make()) for _ in range(sets - 1)]
        self._weight = call.weight.make()
        self._generator = torch.Generator().manual_seed(0)

    def active(self, count: int) -> Lists:
        """``count`` neurons, drawn at random."""
        chosen = torch.randperm(self.call.size, generator=self._generator)[:count].sort().values
        index = torch.full((self.call.size,), -1, dtype=torch.int32)
        index[:count] = chosen.int()
        return lists(index.to(self.call.dy.device), torch.tensor(count))

    def geometry(self, channels: Lists) -> planner.Geometry:
        """What the planner knows this backward by."""
        call, dy = self.call, self._inputs[0][1]
        if call.conv is None:
            fan_in = call.x.shape[-1]
            return linear_geometry(dy, fan_in, channels, call.needed, call.propagate)
        return conv_geometry(dy, self._weight, channels, call.needed, call.conv, call.propagate)

    def way(
        self, channels: Lists, path: str, needed: Needed | None = None
    ) -> Callable[[int], None]:
        """A function of the round's number that runs the backward."""
        return partial(self._run, channels, path, needed or self.call.needed)

    def _run(self, channels: Lists, path: str, needed: Needed, round_: int) -> None:
        call = self.call
        x, dy = self._inputs[round_ % len(self._inputs)]
        if call.conv is None:
            linear_gradients(
                dy, x, self._weight, channels, needed, call.columns, call.propagate, path
            )
        else:
            conv_gradients(dy, x, self._weight, channels, needed, call.conv, call.propagate, path)


def interleave(
    ways: Mapping[str, Callable[[int], object]],
    seconds: float,
    device: torch.device,
    read: Clock = time.perf_counter,
) -> dict[str, float]:
    """Median milliseconds of each way; they take turns, each round in the other direction."""
    clock = _CudaClock(device) if device.type == "cuda" else _HostClock(read)
    times: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    with torch.no_grad():
        for name in order:  # makes kernels, touches memory
            ways[name](0)
        begun = time.perf_counter()
        for round_ in range(MOST_ROUNDS):
            for name in order:
                times[name].append(clock.time(partial(ways[name], round_)))
            order.reverse()
            if round_ + 1 >= LEAST_ROUNDS and time.perf_counter() - begun > seconds:
                break
    return {name: median(values) for name, values in times.items()}


class _HostClock:
    def __init__(self, read: Clock) -> None:
        self._read = read

    def time(self, run: Callable[[], object]) -> float:
        begun = self._read()
        run()
        return (self._read() - begun) * 1e3


class _CudaClock:
    """The larger of what the host and the device take: in a step one of them waits."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def time(self, run: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self._device)
        begin.record()
        host = time.perf_counter()
        run()
        host = (time.perf_counter() - host) * 1e3
        end.record()
        torch.cuda.synchronize(self._device)
        return max(host, begin.elapsed_time(end))


def step_ms(
    forward: Callable[[], Sequence[Tensor]],
    parameters: Sequence[Tensor],
    device: torch.device,
    clock: Clock = time.perf_counter,
) -> tuple[float, float]:
    """Milliseconds of a model's forward and backward."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for _ in range(4):
        wait()
        begun = clock()
        leaves = forward()
        wait()
        middle = clock()
        torch.autograd.grad(
            leaves, parameters, [torch.ones_like(leaf) for leaf in leaves], allow_unused=True
        )
        wait()
        times.append((middle - begun, clock() - middle))
    forwards, backwards = zip(*times[1:], strict=True)
    return median(forwards) * 1e3, median(backwards) * 1e3
