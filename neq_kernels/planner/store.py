"""Decisions on disk: one versioned JSON file in the user's cache folder, shared by processes.

The file is only ever replaced whole, by a temporary file renamed over it; writers read, merge and
replace under a lock. Whatever goes wrong costs a warning, never the training.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

VERSION = 1
# Hundredths of a second to wait for the lock.
PATIENCE = 100
Decisions = dict[str, dict[str, str]]  # machine -> geometry -> path


def folder() -> Path:
    """``NEQ_CACHE``, or ``neq_kernels`` in the user's cache folder."""
    if chosen := os.environ.get("NEQ_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or (
        os.environ.get("LOCALAPPDATA") if os.name == "nt" else None
    )
    return (Path(base) if base else Path.home() / ".cache") / "neq_kernels"


def read() -> Decisions:
    """What is stored; empty, with the file set aside and a warning, where it cannot be used."""
    try:
        return _read(folder() / _NAME)
    except FileNotFoundError:
        return {}
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        _warn(f"expected to read {_NAME}, got {error}")
        return {}


def write(machine: str, decisions: Mapping[str, str]) -> None:
    """Add the decisions to the file, over older ones of the same geometry."""
    temporary: str | None = None
    try:
        home = folder()
        home.mkdir(parents=True, exist_ok=True)
        with _locked(home):
            try:
                stored = _read(home / _NAME)
            except FileNotFoundError:
                stored = {}
            stored[machine] = {**stored.get(machine, {}), **decisions}
            handle, temporary = tempfile.mkstemp(dir=home, prefix=_NAME, suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"version": VERSION, "decisions": stored}, file, indent=1)
            os.replace(temporary, home / _NAME)
            temporary = None
    except (OSError, RuntimeError) as error:
        _warn(f"expected a folder that can be written, got {error}")
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


_NAME = f"plan-v{VERSION}.json"
_warned = False


def _read(path: Path) -> Decisions:
    text = path.read_bytes()
    try:
        return _checked(json.loads(text))
    except ValueError as error:
        aside = path.with_suffix(f".{os.getpid()}.unreadable")
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            path.replace(aside)
        _warn(f"{path} is not a plan of this version ({error}); it was set aside as {aside.name}")
        return {}


def _checked(content: Any) -> Decisions:
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(f"expected version {VERSION}")
    decisions = content.get("decisions")
    machines = decisions.values() if isinstance(decisions, dict) else [None]
    for paths in machines:
        if not isinstance(paths, dict) or not all(isinstance(p, str) for p in paths.values()):
            raise ValueError("expected decisions by machine and geometry")
    assert isinstance(decisions, dict)
    return decisions


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Alone among the processes that write here, where the system can lock files."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(home / f"{_NAME}.lock", "a", encoding="utf-8") as lock:
        for _ in range(PATIENCE):
            # Some network file systems cannot lock, and a process that hangs may hold it for ever.
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        yield


def _warn(problem: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"the measured plan is not kept on disk: {problem}. Training goes on and measures "
            "anew next time; NEQ_CACHE names another folder, NEQ_PLAN=off measures nothing",
            RuntimeWarning,
            stacklevel=2,
        )
