"""python -m neq_kernels bench: runs anywhere the package is installed."""

from dataclasses import replace

import pytest
import torch

from neq_kernels import quick_bench
from neq_kernels.__main__ import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small(monkeypatch):
    """The same layers on one small sample each: the true sizes take a minute."""

    def shrink(case):
        convolution = len(case.sample) == 3
        sample = (case.sample[0], 5, 5) if convolution else case.sample[-1:]
        return replace(case, samples=1, sample=sample)

    return tuple(shrink(case) for case in quick_bench.CASES)


def test_every_case_at_every_share(small):
    lines = []
    rows = quick_bench.run("cpu", 0.001, small, lines.append)
    assert len(rows) == len(small) * len(quick_bench.SHARES)
    assert [row.name for row in rows[:: len(quick_bench.SHARES)]] == [case.name for case in small]
    assert all(row.dgrad_ms > 0 for row in rows), "dX is part of a layer's backward"
    assert all(row.path == "plain" for row in rows if row.active == 1)
    assert lines[0].startswith("CPU, 1 threads, float32")
    assert lines[1].split()[:3] == ["layer", "active", "dense"]
    assert len(lines) == 2 + len(rows)


def test_cases_are_what_they_say():
    for case in quick_bench.CASES:
        x = torch.randn(1, *case.sample)
        assert case.layer()(x).shape[0] == 1


def test_the_command(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(quick_bench, "run", lambda *arguments: seen.append(arguments))
    assert main(["bench", "--device", "cpu", "--seconds", "0.5"]) == 0
    assert seen == [("cpu", 0.5)]
    assert not capsys.readouterr().out
