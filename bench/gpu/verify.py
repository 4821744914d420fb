"""Runs ``pytest -m gpu`` in several processes, goes on where the last call stopped, and writes down
that the kernels are verified once everything has passed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.place import ROOT, Journal, Outcome, Place
from bench.gpu.resume import COLLECTED
from neq_kernels import native, sources

TESTS = ROOT / "tests"
# Compiling kernels takes a processor, tests a little of the GPU.
PROCESSES = 4
# Left for what runs when the time is up.
GRACE = 20.0
ON_A_DEVICE = re.compile(r"usefixtures\([^)]*\"device\"")
FACTS = ("commit", "date", "torch", "cuda", "driver", "triton")


def files() -> list[Path]:
    """The test files with tests that run on a GPU; others need not even be importable there."""
    everywhere = [p for p in sorted(TESTS.glob("test_*.py")) if ON_A_DEVICE.search(p.read_text())]
    return [*sorted((TESTS / "gpu").glob("test_*.py")), *everywhere]


def command(paths: Sequence[Path]) -> list[str]:
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "bench.gpu.resume"]
    return [sys.executable, "-m", "pytest", "-m", "gpu", *options, *names]


def run(place: Place, processes: int = PROCESSES, paths: Sequence[Path] | None = None) -> Outcome:
    """Run what has not passed with these sources and tests."""
    digest = f"{place.facts['sources']}-{sources.digest(TESTS)}"
    path = place.folder / "progress" / "tests.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "NEQ_GPU_JOURNAL": str(path),
        "NEQ_GPU_SOURCES": digest,
        "NEQ_GPU_UNTIL": str(time.time() + place.limit.left - GRACE),
    }
    running = [
        subprocess.Popen(
            command(paths or files()),
            cwd=ROOT,
            env={**environment, "NEQ_GPU_SHARD": f"{shard}/{processes}"},
        )
        for shard in range(processes)
    ]
    codes = [_ended(process, place.limit.left + GRACE) for process in running]
    outcome = summary(Journal(path, digest), processes, codes)
    if outcome.status == "done":
        record(place)
    return outcome


def _ended(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Its exit code; a test that does not end in time ends with its process."""
    try:
        return process.wait(max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def summary(journal: Journal, processes: int, codes: Sequence[int]) -> Outcome:
    """What the journal says, with the exit codes of the processes: 0, or 1 where tests failed; 5
    where none was left to run."""
    counts = [
        int(journal.known.get(f"{COLLECTED} {shard}/{processes}", 0)) for shard in range(processes)
    ]
    tests = {
        unit: status for unit, status in journal.known.items() if not unit.startswith(COLLECTED)
    }
    failed = [unit for unit, status in tests.items() if status == "failed"]
    done, left = len(tests) - len(failed), max(0, sum(counts) - len(tests))
    failed += [f"pytest ended with {code}, see above" for code in codes if code not in (0, 1, 5)]
    skipped = sum(status == "skipped" for status in tests.values())
    return Outcome(done, left, failed, f"{skipped} skipped")


def record(place: Place) -> None:
    """Let ``python -m neq_kernels`` say that these kernels passed here."""
    built = native.build_info()["sources"] if native.available() else None
    sources.record(place.facts["device"], {name: place.facts[name] for name in FACTS}, built)
