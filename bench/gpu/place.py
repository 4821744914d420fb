"""Where a GPU check keeps what it found, so that each part goes on where its last call stopped.

The folder of a device holds a CSV file per bench, ``gpu_check.json`` with what was run by which
versions of what, and below ``progress/`` a journal per part: a line per unit of work, so that none
is done twice for the same sources.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.harness import Row, commit, device_name, results_path, table
from neq_kernels import native, sources

ROOT = Path(__file__).parent.parent.parent
SUMMARY = "gpu_check.json"


class Limit:
    """The time that one call of a part may take; what runs then is finished, nothing is begun."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


@dataclass(frozen=True)
class Outcome:
    """What a call of a part came to: units done so far, those left, and those that failed."""

    done: int = 0
    left: int = 0
    failed: Sequence[str] = ()
    note: str = ""

    @property
    def status(self) -> str:
        if self.failed:
            return "failed"
        return "unfinished" if self.left else "done"

    def __str__(self) -> str:
        parts = [f"{self.done} done"]
        parts += [f"{self.left} left: call it again"] if self.left else []
        parts += [f"{len(self.failed)} FAILED"] if self.failed else []
        return ", ".join(parts) + (f"; {self.note}" if self.note else "")


class Journal:
    """Which units of work are done, or failed, with these sources; kept line by line."""

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self.digest = path, digest
        self.known: dict[str, str] = {}
        if path.exists():
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            self.known = {x["unit"]: x["status"] for x in lines if x["sources"] == digest}

    def note(self, unit: str, status: str) -> None:
        self.known[unit] = status
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"unit": unit, "status": status, "sources": self.digest}) + "\n")


@dataclass
class Place:
    """A device, the folder of its results, and the time there is."""

    device: str
    folder: Path
    limit: Limit
    retry: bool = False
    facts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, device: str, seconds: float, folder: Path | None = None, retry: bool = False
    ) -> Place:
        folder = folder or results_path("any", device).parent
        return cls(device, folder, Limit(seconds), retry, facts(device))

    def journal(self, part: str) -> Journal:
        return Journal(self.folder / "progress" / f"{part}.jsonl", self.facts["sources"])

    def each(
        self, part: str, units: Mapping[str, Callable[[], Sequence[Any]]], reserve: float = 0.0
    ) -> Outcome:
        """Do the ``units`` that are not done, by name, while there is time; each gives rows for the
        part's CSV file. One that fails is noted, and left alone until ``retry``. The first is begun
        in any case, others while ``reserve`` seconds are left."""
        journal, rows = self.journal(part), Rows(self.folder / f"{part}.csv", self.facts)
        begun = False
        for unit, run in units.items():
            status = journal.known.get(unit)
            if status == "done" or (status and not self.retry):
                continue
            if begun and self.limit.left <= reserve:
                break
            begun = True
            try:
                found = run()
            except Exception as error:
                journal.note(unit, f"{type(error).__name__}: {str(error)[:500]}")
                print(f"FAILED {unit}: {error}", flush=True)
                error.__traceback__ = None  # nor what its frames hold on the device
                if _lost(error):
                    break
                continue
            if found and isinstance(found[0], Row):
                print(table(found), flush=True)
            rows.add(found)
            journal.note(unit, "done")
        of = {unit: journal.known[unit] for unit in units if unit in journal.known}
        failed = [f"{unit}: {status}" for unit, status in of.items() if status != "done"]
        return Outcome(len(of) - len(failed), len(units) - len(of), failed)

    def record(self, part: str, outcome: Outcome, seconds: float, **more: object) -> None:
        """Write down in the folder's summary what a part came to."""
        path = self.folder / SUMMARY
        found = json.loads(path.read_text()) if path.exists() else {}
        if found.get("sources") != self.facts["sources"]:
            found = {}
        entry = {
            "status": outcome.status, "done": outcome.done, "left": outcome.left,
            "failed": list(outcome.failed), "note": outcome.note, "seconds": round(seconds, 1),
            **more,
        }  # fmt: skip
        parts = {**found.get("parts", {}), part: entry}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**self.facts, "parts": parts}, indent=2) + "\n")


class Rows:
    """A CSV file that grows; rows measured with other sources are dropped when more come."""

    def __init__(self, path: Path, facts: Mapping[str, str]) -> None:
        self.path, self.facts = path, facts

    def add(self, rows: Sequence[Any]) -> None:
        if not rows:
            return
        names = [column.name for column in fields(rows[0])] + list(self.facts)
        kept = self._kept(names)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows([[row[name] for name in names] for row in kept])
            for row in rows:
                values = [_plain(value) for value in asdict(row).values()]
                writer.writerow([*values, *self.facts.values()])

    def _kept(self, names: list[str]) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            found = list(csv.DictReader(file))
        return [
            row for row in found if list(row) == names and row["sources"] == self.facts["sources"]
        ]


def facts(device: str) -> dict[str, str]:
    """Whose results these are: the device, the versions, the commit, and digests of the sources."""
    built = native.build_info()["sources"] if native.available() else None
    digests = sources.current(built)
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "none"
    return {
        "device": device_name(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton,
        "cuda": str(torch.version.cuda),
        "driver": driver(),
        "commit": os.environ.get("COMMIT") or commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "csrc": digests.get("csrc", "none"),
        "kernels": digests["kernels"],
        "sources": of_all_sources(),
    }


def of_all_sources() -> str:
    """A digest of everything that decides what runs, and how it was built."""
    folders = (sources.PACKAGE, ROOT / "csrc", ROOT / "python")
    return sha256("".join(sources.digest(folder) for folder in folders).encode()).hexdigest()[:16]


def driver() -> str:
    """The NVIDIA driver's version, or "none"."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return "none"
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return found[0] if found else "none"


def _lost(error: Exception) -> bool:
    """Whether the device can do nothing more in this process: errors of its kernels stay."""
    if not torch.cuda.is_available() or "CUDA error" not in str(error):
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _plain(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
