"""Timing that survives a noisy machine, and the rows every benchmark writes.

Providers take turns within one run, so that drift hits all alike; each round shuffles them, as each
leaves its successor a cache full of lines still to be written. Inputs rotate: call i of a provider
works on input set i, and there are enough sets that the last-level cache has forgotten set i when
its turn comes again. Times are medians with the 20th and 80th percentile; before anything else the
reference is timed against itself.
"""

from __future__ import annotations

import csv
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

import torch

from neq_kernels import native

NOISE_LIMIT = 0.03
# More than twice the last-level cache share of the CPUs and GPUs this is meant for.
CACHE_BYTES = 128 << 20
MAX_SETS = 16
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Provider:
    """One way to do the job: ``run(i)`` is timed, ``prepare(i)`` before it is not."""

    run: Callable[[int], object]
    prepare: Callable[[int], object] | None = None


def shifts(ways: int, sets: int) -> list[int]:
    """How far apart ``ways`` go through ``sets`` of inputs, so that in one round none finds in the
    cache what another one has read."""
    return [k * sets // ways for k in range(ways)]


def apart(ways: Mapping[str, Callable[[int], object] | Provider], sets: int) -> dict[str, Provider]:
    """In one round everybody works on another input, as far as can be from those of the others."""
    made = {}
    for shift, (name, way) in zip(shifts(len(ways), sets), ways.items(), strict=True):
        provider = way if isinstance(way, Provider) else Provider(way)
        made[name] = Provider(
            _shifted(provider.run, shift, sets),
            provider.prepare and _shifted(provider.prepare, shift, sets),
        )
    return made


def _shifted(run: Callable[[int], object], shift: int, sets: int) -> Callable[[int], object]:
    return lambda i: run((i + shift) % sets)


@dataclass(frozen=True)
class Timing:
    """Milliseconds."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Timing:
        if len(times) == 1:
            return cls(times[0], times[0], times[0])
        fifths = quantiles(times, n=5, method="inclusive")
        return cls(median(times), fifths[0], fifths[3])


@dataclass(frozen=True)
class Row:
    """One measurement; None where it does not apply.

    ``ceiling_ms`` is the time if every active neuron cost exactly its share, ``ceiling_share`` how
    much of that was reached, ``roofline_ms`` the least that this device's own rates allow; ``gb_s``
    counts every tensor once, ``tflop_s`` only the active rows.
    """

    operator: str
    geometry: str
    dtype: str
    layout: str
    active: float
    provider: str
    dense_ms: float
    ms: float
    p20: float
    p80: float
    speedup: float
    ceiling_ms: float | None = None
    ceiling_share: float | None = None
    path: str = ""
    gb_s: float | None = None
    tflop_s: float | None = None
    roofline_ms: float | None = None


class Stopwatch:
    """Milliseconds between marks: of a processor's clock, or of a device that each mark is queued
    on. It starts on a device at rest, so that what the host takes to launch counts as well."""

    def __init__(self, device: str = "cpu") -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._marks: list[Any] = []
        if self._cuda:
            torch.cuda.synchronize()
        self.mark()

    def mark(self) -> None:
        if not self._cuda:
            self._marks.append(time.perf_counter())
            return
        self._marks.append(torch.cuda.Event(enable_timing=True))
        self._marks[-1].record()

    def ms(self) -> list[float]:
        """From each mark to the next, once the device is through."""
        pairs = list(pairwise(self._marks))
        if not self._cuda:
            return [(end - begin) * 1e3 for begin, end in pairs]
        self._marks[-1].synchronize()
        return [begin.elapsed_time(end) for begin, end in pairs]


def input_sets(nbytes: int) -> int:
    """How many sets of inputs, ``nbytes`` each, keep the cache cold; the times are bounded."""
    return max(2, min(MAX_SETS, -(-CACHE_BYTES // max(nbytes, 1))))


def interleave(
    providers: Mapping[str, Provider],
    *,
    sets: int = 1,
    seconds: float = 2.0,
    rounds: tuple[int, int] = (7, 60),
    warmup: int = 2,
    device: str = "cpu",
) -> dict[str, Timing]:
    """Time ``providers`` in turns for about ``seconds``, within the bounds on ``rounds``.

    Returns:
        Per provider, the distribution of its time per call.

    Raises:
        ValueError: there is no provider.
    """
    if not providers:
        raise ValueError("providers: expected at least one, got none")
    timed = _time_cuda if torch.device(device).type == "cuda" else _time_cpu
    for i in range(warmup):
        for provider in providers.values():
            timed(provider, i % sets)
    times: dict[str, list[float]] = {name: [] for name in providers}
    names, shuffle, done = list(providers), Random(0).shuffle, 0
    end = time.perf_counter() + seconds
    while done < rounds[0] or (done < rounds[1] and time.perf_counter() < end):
        shuffle(names)
        for name in names:
            times[name].append(timed(providers[name], done % sets))
        done += 1
    return {name: Timing.of(values) for name, values in times.items()}


def noise(provider: Provider, *, sets: int = 1, seconds: float = 2.0, device: str = "cpu") -> float:
    """How far ``provider`` is from itself: relative difference of two interleaved medians."""
    both = {"one": provider, "other": provider}
    timings = interleave(both, sets=sets, seconds=seconds, rounds=(15, 200), device=device)
    one, other = timings["one"].median, timings["other"].median
    return abs(one - other) / min(one, other)


def noise_verdict(difference: float) -> str:
    """One line that says whether differences between providers mean anything."""
    text = f"dense against itself: {difference:.1%} apart"
    if difference > NOISE_LIMIT:
        return f"{text}, above {NOISE_LIMIT:.0%}: this machine is too noisy to say"
    return f"{text}, within {NOISE_LIMIT:.0%}"


def environment(device: str = "cpu") -> dict[str, str]:
    """What a result depends on besides the code's arguments."""
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "commit": commit(),
    }


def device_name(device: str = "cpu") -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def commit() -> str:
    """Short git commit of the working tree, "+" behind it when files differ, else "unknown"."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        found = subprocess.run(
            command, cwd=RESULTS.parent.parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def results_path(bench: str, device: str = "cpu") -> Path:
    """bench/results/<device>/<bench>.csv; of a CPU with its instruction set, as makers give one
    name to several generations."""
    name = device_name(device)
    if torch.device(device).type == "cpu" and native.available():
        name = f"{name} {native.cpu_isa()}"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return RESULTS / slug / f"{bench}.csv"


def write_csv(path: str | os.PathLike[str], rows: Sequence[Any], device: str = "cpu") -> None:
    """Write ``rows``, of :class:`Row` or another dataclass, each with the machine and the commit it
    was measured on."""
    path, where = Path(path), environment(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = fields(rows[0] if rows else Row)
        writer.writerow([*(field.name for field in columns), *where])
        for row in rows:
            values = asdict(row).values()
            writer.writerow([*(_plain(value) for value in values), *where.values()])


def table(rows: Sequence[Row]) -> str:
    """``rows`` as text, a heading per geometry."""
    lines, heading = [], None
    for row in rows:
        if heading != (heading := f"{row.operator}  {row.geometry}  {row.dtype}  {row.layout}"):
            lines += ["", heading, _COLUMNS]
        ceiling = "" if row.ceiling_ms is None else f"{row.dense_ms / row.ceiling_ms:.2f}x"
        share = "" if row.ceiling_share is None else f"{row.ceiling_share:.0%}"
        lines.append(
            f"  {row.active:6.0%} {row.provider:22} {row.ms:9.3f} {row.p20:9.3f} {row.p80:9.3f} "
            f"{row.speedup:7.2f}x {ceiling:>8} {share:>7} {_plain(row.gb_s):>7} "
            f"{_plain(row.tflop_s):>8}  {row.path}".rstrip()
        )
    return "\n".join(lines[1:])


_COLUMNS = (
    f"  {'active':>6} {'provider':22} {'ms':>9} {'p20':>9} {'p80':>9} {'speed-up':>8} "
    f"{'ceiling':>8} {'reached':>7} {'GB/s':>7} {'TFLOP/s':>8}  path"
)


def _plain(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _time_cpu(provider: Provider, i: int) -> float:
    if provider.prepare:
        provider.prepare(i)
    watch = Stopwatch()
    provider.run(i)
    watch.mark()
    return watch.ms()[0]


def _time_cuda(provider: Provider, i: int) -> float:
    if provider.prepare:
        provider.prepare(i)
    _flush_buffer().zero_()
    watch = Stopwatch("cuda")
    provider.run(i)
    watch.mark()
    return watch.ms()[0]


@cache
def _flush_buffer() -> torch.Tensor:
    """What, written to, leaves nothing else in the device's second-level cache."""
    size = getattr(torch.cuda.get_device_properties(), "L2_cache_size", 0)
    return torch.empty(max(4 * size, CACHE_BYTES), dtype=torch.int8, device="cuda")
