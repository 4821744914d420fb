"""bench.sizes, bench.planning and bench.memory on a network of two layers."""

import csv
import json
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench import memory, planning, sizes
from bench.models import NETWORKS, Network

pytestmark = pytest.mark.usefixtures("one_thread")
SHARED = 1 << 14


def tiny():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), Mean(), nn.Linear(8, 3))


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def loss(model, x):
    return F.cross_entropy(model(x), torch.arange(len(x)) % 3)


TINY = Network("tiny", tiny, lambda: torch.randn(2, 3, 6, 6), loss, ("contiguous",), 0.8)


def read(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_schedule_has_as_many_sizes_as_it_says():
    for network, (make, candidates) in sizes.INPUTS.items():
        plan = sizes.schedule(candidates, sizes.SIZES, sizes.STEPS)
        assert len(plan) == 500
        assert len(set(plan)) == 200
        assert plan == sizes.schedule(candidates, sizes.SIZES, sizes.STEPS)
        assert make(plan[0]).shape[-len(plan[0]) :] == plan[0]
        assert network in NETWORKS


def test_whole_times_over_many_sizes(monkeypatch):
    monkeypatch.setitem(
        sizes.INPUTS, "tiny", (sizes.images, [(h, w) for h in (5, 6) for w in (5, 6)])
    )
    rows = sizes.measure(TINY, 0.5, steps=6, sizes=3)
    by_name = {row.provider: row for row in rows}
    assert list(by_name) == ["torch", "dense", "ours"]
    ours, dense = by_name["ours"], by_name["dense"]
    assert (ours.steps, ours.sizes) == (6, 3)
    assert ours.speed == pytest.approx(dense.seconds / ours.seconds)


def total(provider, speed):
    return sizes.Total("net", 0.9, provider, 500, 200, 1 / speed, speed)


@pytest.mark.parametrize(("speed", "word"), [(0.985, "0.98 reached"), (0.975, "0.98 MISSED")])
def test_the_verdict_on_many_sizes(speed, word):
    text = sizes.verdict([total("torch", 1.01), total("dense", 1.0), total("ours", speed)])
    assert word in text
    assert "500 steps over 200 sizes" in text


def test_every_network_and_share_has_a_process_of_its_own(tmp_path, monkeypatch, capsys):
    asked = []

    def run_fresh(module, arguments):
        asked.append((module, *arguments))
        return [vars(total(name, 1.0)) for name in ("torch", "dense", "ours")]

    monkeypatch.setattr(sizes, "run_fresh", run_fresh)
    sizes.main(["--active", "0.9", "0.1", "--output", str(tmp_path / "s.csv")])
    assert asked == [
        ("bench.sizes", "--networks", network, "--active", share)
        for network in sizes.INPUTS
        for share in ("0.9", "0.1")
    ]
    assert len(read(tmp_path / "s.csv")) == 12
    assert "MISSED" not in capsys.readouterr().out


def test_the_cost_is_what_the_first_steps_take_beyond_the_settled_ones():
    dense = [10.0] * 5 + [20.0] * 4  # the machine became slower half-way
    ours = [11.0] * 5 + [16.0] * 4
    total, cost, error = planning.excess(ours, dense, 5, steps=100)
    assert total == 5 * 11 + 95 * 16
    assert cost == pytest.approx(5 * (11 - 8) / total)
    assert error == pytest.approx(0, abs=1e-9)
    *_, error = planning.excess([*ours[:5], 15.0, 17.0, 15.0, 17.0], dense, 5)
    assert 0 < error < 0.01


def test_file_accesses_are_seen(tmp_path):
    def touch():
        (tmp_path / "plan.json").write_text("{}")
        (tmp_path / "plan.json").rename(tmp_path / "other.json")

    found = planning.accesses(touch)
    assert any(event.startswith("open") and "plan.json" in event for event in found)
    assert any(event.startswith("os.rename") for event in found)
    touch()
    assert planning.accesses(lambda: None) == []


def test_what_planning_costs(monkeypatch):
    monkeypatch.setattr(planning, "SETTLED_STEPS", 4)
    cost, files = planning.measure(TINY, "contiguous", 0.5)
    assert cost.settled_after == 1, "nothing is measured here: NEQ_PLAN=off"
    assert files == []
    assert cost.files == 0
    assert cost.first_steps_s > 0
    assert "0 file accesses in the 4 steps after" in planning.verdict(cost)


@pytest.mark.parametrize(
    ("cost", "error", "word"), [(0.025, 0.003, "within"), (0.03, 0.003, "ABOVE")]
)
def test_the_verdict_on_planning_counts_two_standard_errors(cost, error, word):
    row = planning.Cost("net", "tokens", 0.1, 20, 1.0, cost, error, 0)
    assert f"{word} 2%" in planning.verdict(row)


def test_planning_is_measured_in_a_process_per_layout(tmp_path, monkeypatch, capsys):
    asked = []

    def run_fresh(module, arguments):
        asked.append(arguments[1:4:2])
        return [vars(planning.Cost("net", "tokens", 0.1, 20, 1.0, 0.01, 0.001, 0))]

    monkeypatch.setattr(planning, "run_fresh", run_fresh)
    planning.main(["--networks", "ResNet-32", "ViT", "--output", str(tmp_path / "p.csv")])
    assert asked == [["ResNet-32", "contiguous"], ["ResNet-32", "channels_last"], ["ViT", "tokens"]]
    assert len(read(tmp_path / "p.csv")) == 3


def test_a_process_writes_its_cost(tmp_path, monkeypatch):
    row = planning.Cost("ViT", "tokens", 0.1, 20, 1.0, 0.01, 0.001, 1)
    monkeypatch.setattr(planning, "measure", lambda *_: (row, ["open plan.json"]))
    output = tmp_path / "rows.json"
    planning.main(["--networks", "ViT", "--layout", "tokens", "--fresh", str(output)])
    assert json.loads(output.read_text()) == [vars(row)]


def test_the_peak_is_the_most_held_at_once():
    def run():
        one = torch.ones(SHARED)
        two = torch.ones(SHARED)
        del one
        return two, torch.ones(SHARED // 2)

    assert memory.peak_bytes(run) == 2 * 4 * SHARED


def chain():
    widths = (8, 4096, 8, 4096, 8, 3)
    return nn.Sequential(*(nn.Linear(i, o) for i, o in pairwise(widths)))


CHAIN = Network(
    "chain", chain, lambda: torch.randn(64, 8), lambda m, x: m(x).square().mean(), ("tokens",), 0.8
)  # fmt: skip


def test_inputs_that_nothing_keeps_are_not_held():
    peaks = {peak.provider: peak for peak in memory.measure(CHAIN, "tokens")}
    assert peaks["dense"].share == 1
    assert peaks["all layers, ours"].peak_mib < 0.6 * peaks["dense"].peak_mib
    assert peaks["ours, all active"].peak_mib == peaks["dense"].peak_mib
    for peak in peaks.values():
        assert peak.share == pytest.approx(peak.peak_mib / peaks["dense"].peak_mib)


def test_memory_of_a_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(NETWORKS, "MobileNetV2", TINY)
    memory.main(["--quick", "--output", str(tmp_path / "m.csv")])
    rows = read(tmp_path / "m.csv")
    assert [row["provider"] for row in rows] == list(memory.contenders(tiny()))
    assert "ours, 10 % active" in capsys.readouterr().out
