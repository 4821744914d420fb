"""The process's plan: what was decided, what is being compared, and whose turn it is."""

from __future__ import annotations

import atexit
import os
import platform
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from math import log
from typing import Any

import torch

from neq_kernels.active import bucket
from neq_kernels.planner import rule, store
from neq_kernels.planner.clock import Clock, Settled
from neq_kernels.planner.race import Race
from neq_kernels.planner.rule import Geometry

MODES = ("measure", "off")
# Where the rule sees a larger advantage, or a smaller one, than these, nothing is measured.
CERTAIN = (0.1, 10.0)
# Sizes of the batch that one layer has measured; the rule decides for more.
MOST_SHAPES = 4
# What is decided holds for sizes so many factors of 1.25 away, where nothing was measured.
NEAR = 6
SIZES = "1.25^"
# Candidates are timed within an autograd Function, which a layer settled on "dense" leaves: the
# others are charged what that spares.
FUNCTION_MS = rule.FUNCTION / 1e6
# And this share of their time: where a few turns tell hardly anything apart, dense is the safe way.
MARGIN = 0.05
SAVE_EVERY = 60.0

Key = tuple[Any, ...]


@dataclass
class LayerPlan:
    """What one layer's last backward took, and why; and what it knows without asking again.

    Attributes:
        path: of the last backward, or None before the first with the set of now.
        why: "measured", "measuring" or "rule".
        settled: decisions by what the caller can tell a geometry from.
        dense: what a forward can tell beforehand that its backward will be dense.
        zeroing, lists: the caller's, for the set of now.
        shapes: what this layer has measured, whatever its set was.
    """

    path: str | None = None
    why: str = ""
    settled: dict[Key, Settled] = field(default_factory=dict)
    dense: set[Key] = field(default_factory=set)
    zeroing: Any = None
    lists: Any = None
    shapes: set[str] = field(default_factory=set)

    def __reduce__(self) -> tuple[type[LayerPlan], tuple[()]]:
        # These hold the layer's lists: a copy of the layer makes its own.
        return LayerPlan, ()

    def forget(self) -> None:
        """The set, or what its layer propagates, has changed."""
        self.path, self.why = None, ""
        self.settled.clear()
        self.dense.clear()
        self.zeroing = self.lists = None


class Plan:
    """Decisions by geometry: in memory, and on disk unless ``NEQ_PLAN=off``.

    A geometry is known by its batch and sizes up to a factor of 1.25, and by the bucket of its
    count. Fewer active channels never make a dense backward the better one, nor one that is not
    direct, so decisions about one count decide about others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget everything in memory; what is on disk is read again when first needed."""
        self._decided: dict[str, dict[int, str]] = {}
        self._scales: dict[str, set[tuple[int, ...]]] = {}
        self._races: dict[tuple[str, int], Race] = {}
        self._unsaved: dict[str, str] = {}
        self._read = False
        self._saved = time.monotonic()

    def known(self, geometry: Geometry) -> str | None:
        """The decision for this geometry, if there is one."""
        return self._known(geometry, scales(geometry.shape))

    def near(self, geometry: Geometry) -> str | None:
        """The decision for the nearest sizes not farther than :data:`NEAR`, all else the same."""
        self._load()
        here = scales(geometry.shape)
        found = tuple(self._scales.get(_shape(geometry, ()), ()))  # other threads may add to it
        apart = {there: _apart(here, there) for there in found if len(there) == len(here)}
        for there in sorted(apart, key=apart.__getitem__):
            if apart[there] <= NEAR and (path := self._known(geometry, there)):
                return path
        return None

    def _known(self, geometry: Geometry, sizes: tuple[int, ...]) -> str | None:
        self._load()
        counts = dict(self._decided.get(_shape(geometry, sizes), {}))
        here = bucket(geometry.count)
        if here in counts:
            return counts[here]
        if any(path == "dense" and count <= here for count, path in counts.items()):
            return "dense"
        sparser = {path for count, path in counts.items() if count >= here}
        for path in ("direct+dx", "direct"):
            if path in sparser:
                return path
        return "packed" if sparser == {"packed"} and not geometry.direct else None

    def decide(self, geometry: Geometry, path: str) -> None:
        """From now on ``path``; kept on disk with the next save."""
        shape, count = _shape(geometry), bucket(geometry.count)
        with self._lock:
            self._decided.setdefault(shape, {})[count] = path
            self._note(shape)
            self._races.pop((shape, count), None)
            self._unsaved[_name(shape, count)] = path
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def turn(self, geometry: Geometry, candidates: Sequence[str]) -> Clock:
        """The next turn in the comparison of ``candidates`` at this geometry."""
        key = (_shape(geometry), bucket(geometry.count))
        with self._lock:
            race = self._races.setdefault(key, Race(candidates))
            path = race.next()
            warms_up = race.warms_up(path)

        def report(ms: float) -> None:
            with self._lock:
                if warms_up:
                    return
                stays = path != "dense" and geometry.propagate == "all"
                race.add(path, (1 + MARGIN) * ms + FUNCTION_MS if stays else ms)
                winner = race.winner()
            if winner is not None and self._races.get(key) is race:
                self.decide(geometry, winner)

        return Clock(path, "measuring", geometry.device, report)

    def save(self) -> None:
        """Write what was decided since the last save."""
        with self._lock:
            unsaved, self._unsaved = self._unsaved, {}
            self._saved = time.monotonic()
        if unsaved and mode() == "measure":
            store.write(machine(), unsaved)

    def state_dict(self) -> dict[str, str]:
        """All decisions, as plain strings."""
        self._load()
        return {
            _name(shape, count): path
            for shape, counts in self._decided.items()
            for count, path in counts.items()
        }

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Take over decisions, also against those of now; what cannot be read is left out."""
        self._load()
        self._adopt(state)

    def _load(self) -> None:
        if not self._read:
            self._read = True
            if mode() == "measure":
                self._adopt(store.read().get(machine(), {}))

    def _adopt(self, state: Mapping[str, str]) -> None:
        for name, path in state.items():
            shape, _, count = name.rpartition(" count=")
            if count.isdecimal():
                self._decided.setdefault(shape, {})[int(count)] = path
                self._note(shape)

    def _note(self, shape: str) -> None:
        before, mark, after = shape.partition(SIZES)
        sizes, _, rest = after.partition(" ")
        numbers = sizes.split("x")
        if all(number.isdecimal() for number in numbers):
            family = self._scales.setdefault(f"{before}{mark} {rest}", set())
            family.add(tuple(map(int, numbers)))


def start(geometry: Geometry, layer: LayerPlan, key: Key) -> Settled:
    """Which path this backward takes; the caller calls ``stop()`` on it when it is through.

    ``key`` is what the caller will ask ``layer.settled`` by before it makes a geometry again.
    """
    taken = _start(geometry, layer)
    if not isinstance(taken, Clock):
        layer.settled[key] = taken
    return taken


def settled(geometry: Geometry) -> Settled:
    """The decision for this geometry, or the rule's; measures nothing, so that it may be asked for
    under a compiler or while a graph is captured."""
    if mode() == "measure" and CERTAIN[0] < rule.advantage(geometry) < CERTAIN[1]:
        known = plan.known(geometry)
        if known is not None and known in rule.ways(geometry):
            return Settled(known, "measured")
    return Settled(rule.choose(geometry), "rule")


def _start(geometry: Geometry, layer: LayerPlan) -> Settled:
    known = settled(geometry)
    certain = not CERTAIN[0] < rule.advantage(geometry) < CERTAIN[1]
    if certain or known.why == "measured" or mode() == "off":
        return known
    shape = _shape(geometry)
    full = len(layer.shapes) >= MOST_SHAPES and shape not in layer.shapes
    if full or not _may_measure(geometry.device):
        near = plan.near(geometry)
        return Settled(near, "near") if near in rule.ways(geometry) else known
    layer.shapes.add(shape)
    return plan.turn(geometry, rule.ways(geometry))


def mode() -> str:
    """``NEQ_PLAN``: "measure", or "off" for the rule alone.

    Raises:
        ValueError: anything else.
    """
    chosen = os.environ.get("NEQ_PLAN") or "measure"
    if chosen not in MODES:
        raise ValueError(f"NEQ_PLAN: expected one of {', '.join(MODES)}, got {chosen!r}")
    return chosen


def machine() -> str:
    """What a measurement holds for: the processors and torch's version."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    device = f"{torch.cuda.get_device_name()}, " if cuda else ""
    return f"{device}{_processor()}, torch {torch.__version__}"


@cache
def _processor() -> str:
    """Its name, and the numbers that tell apart what makers sell under one name."""
    found: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                found.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return f"{found['model name']} {found.get('cpu family', '')}.{found.get('model', '')}"


@lru_cache(maxsize=4096)
def scales(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes up to a factor of 1.25: within it, what was decided for one holds for the others."""
    return tuple(round(log(max(size, 1), 1.25)) for size in sizes)


def _may_measure(device: str) -> bool:
    if torch.are_deterministic_algorithms_enabled():
        return False
    return device != "cuda" or not torch.cuda.is_current_stream_capturing()


def _apart(here: tuple[int, ...], there: tuple[int, ...]) -> int:
    return sum(abs(a - b) for a, b in zip(here, there, strict=True))


def _shape(geometry: Geometry, sizes: tuple[int, ...] | None = None) -> str:
    """A geometry without its count, sizes that follow the batch up to a factor of 1.25, or others
    in their place."""
    g = geometry
    written = "x".join(map(str, scales(g.shape) if sizes is None else sizes))
    needed = "".join("+" if wanted else "-" for wanted in g.needed)
    deterministic = torch.are_deterministic_algorithms_enabled()
    threads = f"{torch.get_num_threads()} threads" if g.device == "cpu" else ""
    return (
        f"{g.kind} {g.device} {threads} {str(g.dtype).removeprefix('torch.')} {SIZES}{written} "
        f"fan_in={g.fan_in} size={g.size} groups={g.groups} kernel={g.kernel} steps={g.steps} "
        f"{'fused ' if g.fused else ''}{'direct ' if g.direct else ''}"
        f"{'channels_last' if g.channels_last else 'contiguous'} propagate={g.propagate} "
        f"{needed}{' deterministic' if deterministic else ''}"
    )


def _name(shape: str, count: int) -> str:
    return f"{shape} count={count}"


plan = Plan()
atexit.register(plan.save)
