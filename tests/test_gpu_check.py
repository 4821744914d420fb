"""make gpu-check, as far as it gets without a GPU: every part on the CPU, on small sizes."""

import csv
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench import geometries, readme, update
from bench.cases import Case
from bench.gpu import __main__ as gpu_check
from bench.gpu import build, exercise, layers, operators, replay, sanitizer, steps, verify
from bench.gpu.networks import NETWORKS
from bench.gpu.parts import PARTS
from bench.gpu.place import ROOT, Journal, Limit, Outcome, Place, Rows
from bench.harness import Row
from bench.models import Network
from bench.peaks import Peaks
from neq_kernels import backends, native

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Dynamo itself makes one when it traces any autograd.Function.
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated"),
]

SMALL = {"inputs": 8, "outputs": 20, "kernel": 3, "stride": 1, "groups": 1}
CONV = Case("small conv", "conv", (2, 8, 6, 6), SMALL, "test", torch.bfloat16, True,
            parameters=torch.float32)  # fmt: skip
LINEAR = Case("small linear", "linear", (12, 8), {"inputs": 8, "outputs": 20}, "test")
PEAKS = Peaks(10.0, {"float32": 0.1, "bfloat16": 0.2})


@pytest.fixture
def place(tmp_path):
    return Place.of("cpu", 1000.0, tmp_path)


def read(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def row(**changes):
    values = dict(
        operator="op", geometry="g", dtype="float32", layout="tokens", active=0.5,
        provider="ours", dense_ms=4.0, ms=2.0, p20=1.9, p80=2.2, speedup=2.0,
    )  # fmt: skip
    return Row(**(values | changes))


def without_gpu(*arguments):
    command = [sys.executable, "-m", "bench.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_stops_at_once_with_one_line():
    done = without_gpu()
    assert done.returncode == 1
    assert not done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert "gpu-check: expected an NVIDIA GPU, found none: torch" in line
    assert "PART=plan" in line


def test_the_plan_lists_every_part_and_needs_no_gpu(capsys):
    assert gpu_check.main(["--part", "plan"]) == 0
    text = capsys.readouterr().out
    for part in PARTS:
        assert f"{part}: " in text
    assert gpu_check.main(["--part", "bench-steps", "--dry-run", "--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(NETWORKS) * len(steps.MODES) * len(steps.SHARES)


def test_make_names_parts_that_there_are():
    text = (ROOT / "Makefile").read_text()
    assert "$(PYTHON) -m bench.gpu --part $(PART)" in text


def test_work_goes_on_where_it_stopped(place, tmp_path):
    ran = []
    units = {name: lambda name=name: ran.append(name) or [row(geometry=name)] for name in "abc"}
    place.limit = Limit(-1)
    for done in (1, 2, 3, 3):
        outcome = place.each("part", units)
        assert (outcome.done, outcome.left) == (done, 3 - done)
    assert outcome.status == "done"
    assert ran == ["a", "b", "c"]
    rows = read(tmp_path / "part.csv")
    assert [r["geometry"] for r in rows] == ran
    assert rows[0]["commit"]
    assert rows[0]["sources"] == place.facts["sources"]


def test_what_fails_is_noted_and_left_alone_until_retried(place):
    results = iter([ValueError("bad"), [row()]])

    def run():
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    units = {"a": run, "b": lambda: [row()]}
    for _ in range(2):
        outcome = place.each("part", units)
        assert outcome.status == "failed"
        assert list(outcome.failed) == ["a: ValueError: bad"]
        assert outcome.done == 1
    place.retry = True
    assert place.each("part", units).status == "done"


def test_other_sources_are_measured_anew(place, tmp_path):
    rows = Rows(tmp_path / "part.csv", place.facts)
    rows.add([row(geometry="old")])
    place.journal("part").note("a", "done")
    place.facts = {**place.facts, "sources": "others"}
    assert place.each("part", {"a": lambda: [row(geometry="new")]}).done == 1
    assert [r["geometry"] for r in read(tmp_path / "part.csv")] == ["new"]


def test_the_summary_says_by_what_it_was_made(place, tmp_path):
    place.record("build", Outcome(1), 2.0)
    place.record("tests", Outcome(5, 2, ["x"], "note"), 3.0)
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {"commit", "sources", "csrc", "kernels", "torch", "triton", "cuda", "driver"} <= set(
        found
    )
    assert found["parts"]["build"]["status"] == "done"
    assert found["parts"]["tests"]["failed"] == ["x"]


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "75-real"), ((8, 0), "80-real"), ((9, 0), "90a-real"),
                                 ((10, 0), "100-real")]
)  # fmt: skip
def test_the_build_is_for_one_kind_of_gpu(capability, expected):
    environment = build.environment(capability)
    assert environment["NEQ_CUDA_ARCHITECTURES"] == expected
    assert environment["NEQ_CUDA"] == "ON"
    assert environment["PATH"].startswith(str(Path(sys.executable).parent))


def test_every_layer_is_measured_beside_its_roofline(place, tmp_path):
    units = layers.units("cpu", {"net": [CONV, LINEAR]}, PEAKS, 0.0, (1.0, 0.1))
    assert place.each("layers", units).status == "done"
    rows = read(tmp_path / "layers.csv")
    counts = Counter((r["operator"], r["provider"]) for r in rows)
    assert counts["layer backward", "ours, propagate=active"] == 4
    assert counts["layer wgrad", "ours, propagate=all"] == 4
    assert {"dense", "masked", "naive"} <= {r["provider"] for r in rows}
    for r in rows:
        assert bool(r["roofline_ms"]) == r["provider"].startswith("ours")
        assert r["gb_s"]
        assert bool(r["path"]) == r["provider"].startswith("ours") or r["active"] == "1"
    assert {r["dtype"] for r in rows} == {"bfloat16 autocast", "float32"}


@pytest.mark.parametrize(
    ("dx", "propagate", "share", "moved", "operations"),
    [(True, "all", 1.0, 2 * (96 + 160) + 240, 2), (True, "all", 0.1, 2 * (96 + 160) + 240, 1.1),
     (True, "active", 0.1, 24 + 2 * 96 + 160 + 16, 0.2), (False, "all", 0.1, 24 + 96 + 160, 0.1)],
)  # fmt: skip
def test_rooflines_count_what_must_be_moved_and_computed(dx, propagate, share, moved, operations):
    memory_bound = Peaks(1.0, {"float32": 1e9}).roofline_ms(LINEAR, share, dx, propagate)
    assert memory_bound == pytest.approx(4 * moved / 1e6)
    compute_bound = Peaks(1e9, {"float32": 1e-3}).roofline_ms(LINEAR, share, dx, propagate)
    assert compute_bound == pytest.approx(2 * operations * 12 * 8 * 20 / 1e6)


def test_peaks_are_measured_by_dtype():
    peaks = Peaks.measure("cpu", layers.DTYPES, 0.0)
    assert peaks.gb_s > 0
    assert set(peaks.tflop_s) == {"float32", "bfloat16"}


@pytest.mark.parametrize("name", ["ResNet-50", "MobileNetV2"])
def test_geometries_are_those_of_the_networks(name):
    pytest.importorskip("transformers")
    network = next(n for n in NETWORKS.values() if n.name == name)
    seen = set()

    def note(layer, inputs, output):
        sizes = inputs[0].shape[1], output.shape[1], layer.kernel_size[0], layer.stride[0]
        seen.add((*sizes, layer.groups, output.shape[2]))

    with torch.device("meta"):
        model = network.make()
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(note)
        model(torch.empty(2, 3, 224, 224))
    ours = {
        (a["inputs"], a["outputs"], a["kernel"], a["stride"], a["groups"],
         -(-case.input[2] // a["stride"]))
        for case in geometries.cases()[name]
        for a in [case.arguments]
    }  # fmt: skip
    assert ours == seen


def test_operators_run_at_every_size(place, monkeypatch, tmp_path):
    if reason := native.why_not():
        pytest.skip(reason)
    for bench in (operators.pack_channels, operators.channel_moments):
        monkeypatch.setattr(bench, "KINDS", [("tokens", 64, 0), ("channels_last", 16, 7)])
    monkeypatch.setattr(operators.depthwise_wgrad, "LARGE", [(16, 6, 1)])
    monkeypatch.setattr(operators.row_optimizers, "KINDS", {"small": lambda: nn.Linear(8, 20)})
    monkeypatch.setattr(operators.compact, "NETWORKS", {"small": [20, 30]})
    units = operators.units("cpu", 0.0, (1,), 2)
    assert place.each("operators", units).status == "done"
    found = {r["operator"] for r in read(tmp_path / "operators.csv")}
    assert found == {
        "pack_channels", "channel_moments", "depthwise_wgrad", "compact", "SGD.step", "AdamW.step"
    }  # fmt: skip


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.Flatten(),
        nn.Linear(48, 16), nn.Linear(16, 3),
    )  # fmt: skip


TINY = Network(
    "tiny", tiny, lambda: torch.randn(4, 2, 4, 4),
    lambda model, x: F.cross_entropy(model(x).float(), torch.arange(4) % 3), ("channels_last",),
    0.8, autocast=torch.bfloat16,
)  # fmt: skip


def test_whole_steps_eager_and_compiled(place, tmp_path):
    units = steps.units({"tiny": TINY}, "cpu", 2, (1.0, 0.25), "aot_eager")
    outcome = place.each("train", units)
    assert outcome.status == "done", outcome.failed
    rows = read(tmp_path / "train.csv")
    modes = {r["path"] for r in rows if r["provider"].startswith("ours")}
    assert modes == {"eager", "compiled"}
    assert len(rows) == 2 * 2 * (8 + 7)
    for r in rows:
        assert bool(r["ceiling_ms"]) == r["provider"].startswith("ours")
        assert r["dtype"] == "bfloat16 autocast"


def test_gradients_off_still_reach_every_layer():
    model, batch = TINY.build("cpu", "channels_last")
    one = steps.gradients_off(model)
    assert TINY.training_loss(one.model, batch).item() == pytest.approx(
        TINY.training_loss(model, batch).item(), rel=1e-2
    )
    TINY.training_loss(one.model, batch).backward()
    grads = {name: p.grad is not None for name, p in one.model.named_parameters()}
    assert not any(grads[f"{name}.weight"] for name in ("0", "3", "5"))
    assert grads["1.weight"]
    assert grads["6.weight"]


def test_every_share_has_its_own_sets():
    runners = steps.Runners(replace(TINY, autocast=None), "eager", "cpu", "")
    for share, count in ((1.0, 8), (0.25, 2)):
        runners.measure(share, 1)
        for name in steps.train.OURS:
            layer = runners.made[name].model[0]
            assert layer.active.count == count
        grad = runners.made["masked"].model[0].weight.grad
        assert (grad.flatten(1) != 0).any(1).sum() == count


def test_an_update_is_measured_beside_the_steps():
    (found,) = update.measure(TINY, 0.5, "cpu", 1)
    assert found.epoch_share == pytest.approx(found.update_ms / (5000 * found.step_ms))
    assert "of 5000 steps, within" in update.verdict(replace(found, epoch_share=0.01))
    assert "ABOVE 1%" in update.verdict(replace(found, epoch_share=0.011))


def test_replays_without_graphs_are_eager():
    (run,) = replay.units("cpu", [CONV], 0.0).values()
    assert [r.provider for r in run()] == ["dense, eager", "ours, eager"]
    assert len(replay.units("cpu")) == len(replay.LAYERS)


@pytest.mark.parametrize("operator", backends.OPERATORS)
def test_what_the_sanitizer_watches_computes_what_it_should(operator):
    if reason := native.why_not():
        pytest.skip(reason)
    assert any("native" in done for done in exercise.run(operator, "cpu"))


SANITIZER = """#!/bin/sh
case "$*" in *racecheck*) {race};; *) echo watched; exit 0;; esac
"""


@pytest.mark.parametrize(
    ("race", "status", "words"),
    [("echo fine; exit 0", "done", ""),
     ("echo 'ERROR: a hazard'; exit 99", "failed", "a hazard"),
     ("echo '= Error: Device not supported'; exit 1", "done", "does not allow it: Error: Device"),
     ("echo CUDA error; exit 1", "failed", "exit code 1")],
)  # fmt: skip
def test_the_sanitizer_finds_or_says_why_not(race, status, words, place, tmp_path, monkeypatch):
    program = tmp_path / "compute-sanitizer"
    program.write_text(SANITIZER.format(race=race))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    outcome = sanitizer.run(place)
    assert outcome.status == status
    assert words in f"{outcome} {outcome.failed}"
    assert not outcome.left


def test_a_sanitizer_that_is_not_there_is_skipped_aloud(place, monkeypatch):
    monkeypatch.setattr(sanitizer, "find", lambda: None)
    assert "skipped: found no compute-sanitizer" in str(sanitizer.run(place))


TESTS = """
import pytest
from pathlib import Path
pytestmark = pytest.mark.gpu
def note(text):
    with open({ran!r}, "a") as file:
        file.write(text)
@pytest.mark.parametrize("n", range(4))
def test_good(n): note(f"good{{n}} ")
def test_bad():
    note("bad ")
    assert Path({fixed!r}).exists()
def test_skipped(): pytest.skip("no")
"""


def test_tests_go_on_where_they_stopped(place, tmp_path, monkeypatch):
    ran, fixed = tmp_path / "ran", tmp_path / "fixed"
    file = tmp_path / "test_few.py"
    file.write_text(TESTS.format(ran=str(ran), fixed=str(fixed)))
    command = [*verify.command([]), "--rootdir", str(tmp_path), "-c", str(ROOT / "pyproject.toml")]
    monkeypatch.setattr(verify, "command", lambda paths: [*command, str(file)])
    recorded = []
    monkeypatch.setattr(verify, "record", recorded.append)
    monkeypatch.setattr(verify, "GRACE", 600.0)  # left for what runs: nothing is begun
    place.limit = Limit(100.0)
    assert verify.run(place, 2).left == 6
    assert not ran.exists()
    place.limit = Limit(1200.0)
    outcome = verify.run(place, 2)
    assert (outcome.done, outcome.left, outcome.note) == (5, 0, "1 skipped")
    (failed,) = outcome.failed
    assert failed.endswith("test_bad")
    assert not recorded
    fixed.touch()
    assert verify.run(place, 2).status == "done"
    assert recorded == [place]
    assert sorted(ran.read_text().split()) == ["bad", "bad", "good0", "good1", "good2", "good3"]


def test_a_process_that_died_is_a_failure(tmp_path):
    journal = Journal(tmp_path / "tests.jsonl", "sources")
    journal.note("collected 0/1", "1")
    journal.note("test_a", "passed")
    assert verify.summary(journal, 1, [0]).status == "done"
    assert verify.summary(journal, 1, [5]).status == "done"
    assert verify.summary(journal, 1, [-11]).status == "failed"


def test_the_files_with_tests_for_a_gpu_are_run():
    found = {path.relative_to(ROOT / "tests").as_posix() for path in verify.files()}
    assert {f"gpu/{path.name}" for path in (ROOT / "tests" / "gpu").glob("test_*.py")} <= found
    assert {
        f"test_{name}.py" for name in ("linear", "conv", "norm", "captured", "compile")
    } <= found
    assert "test_bench.py" not in found


def test_readme_has_tables_of_gpus_that_were_measured(place, tmp_path):
    block = "<!-- bench:gpu * -->\n<!-- /bench -->"
    assert readme.fill(block, tmp_path) == block
    place.folder = tmp_path / "some-gpu"
    place.each("layers", layers.units("cpu", {"net": [LINEAR]}, PEAKS, 0.0))
    place.each("train", steps.units({"tiny": TINY}, "cpu", 1, (1.0, 0.1), "aot_eager"))
    place.record("bench-layers", Outcome(1), 1.0)
    filled = readme.fill(block, tmp_path)
    assert f"On an {place.facts['device']}, torch {torch.__version__}" in filled
    (line,) = [line for line in filled.splitlines() if line.startswith("| small linear")]
    cells = line.split(" | ")
    assert len(cells) == 14
    assert sum(cell.endswith("x") for cell in cells) == 7
    networks = [line for line in filled.splitlines() if line.startswith("| tiny")]
    assert [line.split(" | ")[2] for line in networks] == ["eager", "compiled"]
    assert readme.fill(filled, tmp_path) == filled
