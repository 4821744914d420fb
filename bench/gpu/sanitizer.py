"""compute-sanitizer's memcheck and racecheck over every operator's kernels, where the host allows
it; where it does not, the part says why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.gpu.place import ROOT, Journal, Outcome, Place
from neq_kernels import backends

TOOLS = ("memcheck", "racecheck")
FOUND = 99  # its exit code where it found something
HOMES = (
    "/usr/local/cuda/bin",
    "/usr/local/cuda/compute-sanitizer",
    "/opt/nvidia/compute-sanitizer",
)
LONGEST = 240.0
# What it prints where it may not watch this device, or cannot be let in at all.
REFUSALS = ("Device not supported", "not permitted", "insufficient permissions", "LibraryNotLoaded",
            "Unable to find injection library")  # fmt: skip


class RefusedError(Exception):
    """The host does not let the device be watched."""


def find() -> str | None:
    """compute-sanitizer: on PATH, beside nvcc, or where toolkits put it."""
    nvcc = shutil.which("nvcc")
    homes = [str(Path(nvcc).resolve().parent)] if nvcc else []
    homes += [f"{os.environ['CUDA_HOME']}/bin"] if "CUDA_HOME" in os.environ else []
    path = os.pathsep.join([os.environ.get("PATH", ""), *homes, *HOMES])
    return shutil.which("compute-sanitizer", path=path)


def command(program: str, tool: str, operator: str, device: str) -> list[str]:
    return [
        program, "--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "all",
        sys.executable, "-m", "bench.gpu.exercise", operator, "--device", device,
    ]  # fmt: skip


def check(program: str, tool: str, operator: str, device: str) -> None:
    """Watch one operator.

    Raises:
        RefusedError: the host does not allow it.
        RuntimeError: something was found, or the operator failed; with the end of the output.
    """
    # Without torch's cache every tensor is an allocation of its own, with an end to run over.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        command(program, tool, operator, device), cwd=ROOT, env=environment, timeout=LONGEST,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode == 0:
        print(f"{tool} {operator}: {done.stdout.strip().splitlines()[-1]}", flush=True)
        return
    if any(words in done.stdout for words in REFUSALS):
        line = next(x for x in done.stdout.splitlines() if any(w in x for w in REFUSALS))
        raise RefusedError(line.strip("= "))
    raise RuntimeError(f"exit code {done.returncode}: {done.stdout[-3000:]}")


def run(place: Place) -> Outcome:
    """Every tool on every operator, while there is time."""
    program = find()
    if program is None:
        return Outcome(note="skipped: found no compute-sanitizer on PATH or beside nvcc")
    units = {
        f"{tool} {operator}": partial(check, program, tool, operator, place.device)
        for tool in TOOLS
        for operator in backends.OPERATORS
    }
    return watch(place, place.journal("sanitizer"), units)


def watch(place: Place, journal: Journal, units: dict[str, Callable[[], None]]) -> Outcome:
    begun = False
    for unit, run_it in units.items():
        if journal.known.get(unit) == "done" or (unit in journal.known and not place.retry):
            continue
        if begun and place.limit.left < LONGEST / 2:
            break
        begun = True
        try:
            run_it()
        except RefusedError as error:
            return Outcome(note=f"skipped: this host does not allow it: {error}")
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"FAILED {unit}: {error}", flush=True)
            journal.note(unit, str(error)[-800:])
            continue
        journal.note(unit, "done")
    of = {unit: journal.known[unit] for unit in units if unit in journal.known}
    failed = [f"{unit}: {status}" for unit, status in of.items() if status != "done"]
    return Outcome(len(of) - len(failed), len(units) - len(of), failed)
