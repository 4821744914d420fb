"""A pytest plugin for runs that end in time and go on later: what passed is not run again.

Set up by the environment: ``NEQ_GPU_JOURNAL``, the journal's file; ``NEQ_GPU_SOURCES``, whose
results count; ``NEQ_GPU_UNTIL``, seconds since the epoch after which no test begins; and
``NEQ_GPU_SHARD``, such as 1/4, which part of the tests this process runs.
"""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path

import pytest
import torch

from bench.gpu.place import Journal

COLLECTED = "collected"


def pytest_configure(config: pytest.Config) -> None:
    if path := os.environ.get("NEQ_GPU_JOURNAL"):
        journal = Journal(Path(path), os.environ["NEQ_GPU_SOURCES"])
        shard, shards = map(int, os.environ.get("NEQ_GPU_SHARD", "0/1").split("/"))
        until = float(os.environ["NEQ_GPU_UNTIL"])
        config.pluginmanager.register(Resume(journal, until, shard, shards))


class Resume:
    def __init__(self, journal: Journal, until: float, shard: int, shards: int) -> None:
        self.journal, self.until = journal, until
        self.shard, self.shards = shard, shards
        self.lost = False
        self._status: dict[str, str] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        mine = [item for item in items if zlib.crc32(_name(item)) % self.shards == self.shard]
        known = {item: self.journal.known.get(item.nodeid) for item in mine}
        # What failed comes last: it may have taken the device with it.
        chosen = [item for item, status in known.items() if status is None]
        chosen += [item for item, s in known.items() if s not in (None, "passed", "skipped")]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        self.journal.note(f"{COLLECTED} {self.shard}/{self.shards}", str(len(mine)))
        items[:] = chosen

    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        # True: it has been dealt with, by leaving it for later.
        return True if self.lost or time.time() > self.until else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self._status[report.nodeid] = "skipped" if report.skipped else "failed"
        if report.when == "teardown":
            self.journal.note(report.nodeid, self._status.pop(report.nodeid, "passed"))
            self.lost = self.lost or (report.nodeid in self._failed() and _unusable())

    def _failed(self) -> set[str]:
        return {unit for unit, status in self.journal.known.items() if status == "failed"}


def _name(item: pytest.Item) -> bytes:
    return item.nodeid.encode()


def _unusable() -> bool:
    """Whether a kernel's error has made the device unusable for this process."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
