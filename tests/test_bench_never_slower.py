"""bench.never_slower, its fresh processes, and its picture."""

import csv
import json
from dataclasses import asdict, replace

import pytest
import torch

import neq_kernels as neq
from bench import fresh, never_slower, plot
from bench.cases import conv, linear
from bench.never_slower import Result

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = [
    *conv("conv", (2, 8, 6, 6), 16, 3, "test"),
    *conv("image", (2, 3, 6, 6), 16, 3, "test"),
    *linear("linear", 12, 8, 16, "test"),
    *linear("columns", 12, 8, 16, "test", kind="columns"),
]


def a_result(**changes):
    values = dict(
        run="1", geometry="linear 8->16 @ 12x8 (linear)", dtype="float32", layout="tokens",
        active=0.5, path="packed", rounds=9, dense_ms=2.0, ours_ms=1.0, speed=2.0, low=1.9,
        high=2.1, itself=1.0, extra_us=-1000.0, extra_low_us=-1010.0, step_dense_ms=3.0,
        step_speed=1.5, step_high=1.6, step_extra_us=-1000.0, step_extra_low_us=-1010.0,
    )  # fmt: skip
    return Result(**(values | changes))


def test_the_points_are_many_and_of_every_kind():
    points = never_slower.points()
    assert len(points) >= 150
    keys = [(c.kind, c.geometry, c.layout, c.dtype, share) for c, share in points]
    assert len(set(keys)) == len(points)
    cases = {case.name: case for case, _ in points}.values()
    convolutions = [case.arguments for case in cases if case.kind == "conv"]
    assert any(a["inputs"] == a["outputs"] == 16 for a in convolutions)
    assert any(a["kernel"] == 1 for a in convolutions)
    assert any(a["groups"] > 1 for a in convolutions)
    assert {case.dtype for case in cases} == {torch.float32, torch.bfloat16}
    assert {case.kind for case in cases if case.input[0] == 1} == {"conv", "linear"}
    assert 0 < len(never_slower.points(quick=True)) < 40


@pytest.mark.parametrize("case", SMALL, ids=lambda c: f"{c.name}-{c.layout}")
def test_contenders_compute_the_same_gradients(case):
    torch.manual_seed(0)
    made = never_slower.contenders(case, 0.25)
    assert list(made) == ["dense", "dense again", "ours"]
    for turn in range(2):
        found = []
        for one in made.values():
            backward, step = one.step(turn)
            assert 0 < backward < step
            found.append([p.grad for p in one.layer.parameters()])
            assert (one.inputs[turn].grad is None) == (case.name == "image")
        for grads in found[1:]:
            torch.testing.assert_close(grads, found[0], rtol=1e-4, atol=1e-5)
    dim = int(case.kind == "columns")
    rows = made["dense"].layer.weight.grad.movedim(dim, 0).flatten(1)
    assert int(rows.any(1).sum()) == 4
    assert neq.get_active(made["ours"].layer)[""].count == 4


def test_medians_are_compared_round_by_round():
    noise = 1 + 0.2 * torch.rand(40, generator=torch.Generator().manual_seed(0))
    dense = 10 * noise.double()
    speed, low, high, extra, extra_low = never_slower.compare(dense, dense * 1.1)
    assert (speed, low, high) == pytest.approx((1 / 1.1,) * 3), "noise that hits both is none"
    assert extra == pytest.approx(100 * float(dense.quantile(0.5)))
    assert extra_low < extra
    _, low, high, *_ = never_slower.compare(dense, dense.flip(0))
    assert low < 1 < high


@pytest.mark.parametrize(
    ("high", "dense_ms", "extra_low_us", "slower"),
    [
        (0.98, 1.0, 50.0, False),
        (0.96, 1.0, 10.0, True),  # 20 us count as equal only where the backward is short
        (0.80, 0.2, 19.0, False),
        (0.80, 0.2, 21.0, True),
    ],
)
def test_what_counts_as_slower(high, dense_ms, extra_low_us, slower):
    assert a_result(high=high, dense_ms=dense_ms, extra_low_us=extra_low_us).slower is slower
    step = a_result(step_high=high, dense_ms=dense_ms, step_extra_low_us=extra_low_us)
    assert step.step_slower is slower
    assert not step.slower


def test_points_below_the_limit_are_measured_again_for_longer(monkeypatch):
    asked = []

    def measure(case, share, seconds, run):
        asked.append((case.name, seconds, run))
        return a_result(run=run, speed=0.96 if case.name == "conv" else 1.2)

    monkeypatch.setattr(never_slower, "measure", measure)
    results = never_slower.measure_all([(SMALL[0], 0.5), (SMALL[-1], 0.5)], 0.1, "2")
    assert asked[:2] == [("conv", 0.1, "2"), ("columns", 0.1, "2")]
    assert asked[2:] == [("conv", pytest.approx(0.3), "2 again")]
    assert len(results) == 3


def test_the_last_measurement_counts():
    slow = dict(speed=0.9, high=0.92, low=0.88)
    results = [a_result(**slow), a_result(active=0.1, **slow), a_result(run="2")]
    results += [a_result(run="1 again"), a_result(run="1 again", active=0.1, **slow)]
    assert [r.slower for r in never_slower.last(results)] == [False, True, False]
    text = never_slower.summary(results)
    assert "2 points in 2 processes" in text
    assert "backward: slower than dense beyond noise: 1 points" in text
    assert "run 1 again: 0.900x" in text
    assert "ours 66.7% of the points, dense against itself 0.0%" in text


def test_a_point():
    torch.manual_seed(0)
    result = never_slower.measure(SMALL[-1], 0.5, 0.0, "1")
    assert result.rounds == never_slower.ROUNDS[0]
    assert result.speed == pytest.approx(result.dense_ms / result.ours_ms)
    assert result.low <= result.high
    assert result.step_dense_ms > result.dense_ms
    assert result.path in ("dense", "packed (native)", "packed (torch)")


def test_each_run_is_a_process_and_its_table_can_be_drawn(tmp_path, monkeypatch, capsys):
    asked = []

    def run_fresh(module, arguments):
        asked.append((module, arguments))
        return [asdict(a_result(run=arguments[-1], speed=0.9, high=0.92, low=0.88))]

    monkeypatch.setattr(never_slower, "run_fresh", run_fresh)
    path = tmp_path / "never_slower.csv"
    never_slower.main(["--output", str(path)])
    assert [(module, found[-2:]) for module, found in asked] == [
        ("bench.never_slower", ["--run", "1"]), ("bench.never_slower", ["--run", "2"]),
    ]  # fmt: skip
    assert [row["run"] for row in csv.DictReader(path.read_text().splitlines())] == ["1", "2"]
    assert "slower than dense beyond noise: 1 points" in capsys.readouterr().out
    assert plot.draw(tmp_path) == [tmp_path / "never_slower.png"]
    assert (tmp_path / "never_slower.png").stat().st_size > 5000


def test_a_process_writes_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(never_slower, "points", lambda quick: [(SMALL[-1], 0.5)])
    monkeypatch.setattr(never_slower, "measure", lambda *_: a_result(run="7"))
    never_slower.main(["--run", "7", "--fresh", str(tmp_path / "rows.json")])
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert Result(**row) == a_result(run="7")


def test_fresh_processes_have_a_plan_of_their_own(tmp_path, monkeypatch):
    (tmp_path / "fresh_probe.py").write_text(
        "import json, os, sys\n"
        "found = [dict(cache=os.environ['NEQ_CACHE'], plan=os.environ['NEQ_PLAN'], of=sys.argv[1])]"
        "\nopen(sys.argv[3], 'w').write(json.dumps(found))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("NEQ_CACHE", "mine")
    rows = [fresh.run_fresh("fresh_probe", [word])[0] for word in ("a", "b")]
    assert [row["of"] for row in rows] == ["a", "b"]
    assert len({"mine", *(row["cache"] for row in rows)}) == 3
    assert {row["plan"] for row in rows} == {"measure"}


def test_settling_ends_when_nothing_is_compared_or_patience_does(monkeypatch):
    answers = iter([False, False, True])
    monkeypatch.setattr(fresh, "settled", lambda model: next(answers))
    steps = []
    assert fresh.settle(torch.nn.Linear(1, 1), steps.append) == 3
    assert steps == [0, 1, 2]
    monkeypatch.setattr(fresh, "settled", lambda model: False)
    assert fresh.settle(torch.nn.Linear(1, 1), steps.append, patience=5) == 5


def test_a_model_is_settled_when_no_layer_is_being_compared(monkeypatch):
    model = neq.convert(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)))
    assert fresh.settled(model)
    found = neq.report(model)
    rows = (found.layers[0], replace(found.layers[1], path="packed, being compared"))
    monkeypatch.setattr(fresh.neq, "report", lambda model: replace(found, layers=rows))
    assert not fresh.settled(model)


def test_in_one_round_nobody_finds_what_another_has_read(monkeypatch):
    steps = {}

    class Spy(never_slower.Contender):
        def step(self, i):
            steps.setdefault(id(self), []).append(i % len(self.inputs))
            return super().step(i)

    monkeypatch.setattr(never_slower, "Contender", Spy)
    monkeypatch.setattr(never_slower, "warm_up", lambda made: steps.clear())
    never_slower.measure(SMALL[-1], 0.5, 0.0, "1")
    rounds = list(zip(*(found[-never_slower.ROUNDS[0] :] for found in steps.values()), strict=True))
    assert len(rounds) == never_slower.ROUNDS[0]
    assert all(len(set(sets)) == 3 for sets in rounds)
