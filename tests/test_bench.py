import csv
from collections import Counter

import pytest
import torch

import neq_kernels as neq
from bench import harness, layers, overhead, protect, row_optimizers
from bench.cases import CASES, Case, conv, linear
from bench.harness import Provider, Row, Timing, interleave, noise, noise_verdict
from bench.models import Network


class Clock:
    """A clock that only moves when a fake provider says how long it took."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def provider(self, milliseconds):
        calls = iter(milliseconds)

        def run(i):
            self.now += next(calls) / 1e3

        return Provider(run)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(harness.time, "perf_counter", clock)
    return clock


def test_timing_is_the_median_between_percentiles():
    assert Timing.of([5.0]) == Timing(5.0, 5.0, 5.0)
    assert Timing.of([1.0, 2.0, 3.0, 4.0, 100.0, 6.0]) == Timing(3.5, 2.0, 6.0)


def test_warmup_is_not_counted_and_outliers_do_not_matter(clock):
    fast = clock.provider([900.0, 900.0, 2.0, 2.0, 50.0, 2.0, 2.0])
    slow = clock.provider([900.0, 900.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    timings = interleave({"fast": fast, "slow": slow}, seconds=0, rounds=(5, 5), warmup=2)
    assert timings["fast"].median == pytest.approx(2.0)
    assert timings["slow"].median == pytest.approx(4.0)


def test_providers_take_turns_on_rotating_inputs_and_all_follow_each_other():
    calls = []
    providers = {name: Provider(lambda i, name=name: calls.append((name, i))) for name in "abc"}
    interleave(providers, sets=2, seconds=0, rounds=(40, 40), warmup=0)
    rounds = [calls[at : at + 3] for at in range(0, len(calls), 3)]
    for done, turns in enumerate(rounds):
        assert sorted(turns) == [(name, done % 2) for name in "abc"]
    follows = Counter((one[0][0], one[1][0]) for one in rounds)
    assert len(follows) == 6
    assert min(follows.values()) >= 3


def test_preparation_is_not_timed(clock):
    def prepare(i):
        clock.now += 7.0

    provider = Provider(clock.provider([3.0] * 4).run, prepare)
    timing = interleave({"it": provider}, seconds=0, rounds=(4, 4), warmup=0)["it"]
    assert timing.median == pytest.approx(3.0)


def test_rounds_fill_the_time_within_their_bounds(clock):
    calls = []

    def run(i):
        calls.append(i)
        clock.now += 0.1

    for seconds, expected in ((0.45, 5), (0.0, 3), (100.0, 8)):
        calls.clear()
        interleave({"it": Provider(run)}, seconds=seconds, rounds=(3, 8), warmup=0)
        assert len(calls) == expected


def test_no_provider_is_an_error():
    with pytest.raises(ValueError, match="providers: expected at least one, got none"):
        interleave({})


def test_noise_is_the_difference_of_a_provider_to_itself(clock):
    # The provider alternates between its two names: one sees 10 ms, the other 11, or near that.
    warmup, first, other = [1.0] * 4, [10.0, 11.0], [11.0, 10.0]
    times = warmup + [t for k in range(15) for t in (other if k % 2 else first)]
    assert noise(clock.provider(times), seconds=0) == pytest.approx(0.1)


def test_noise_verdict_says_when_the_machine_is_too_noisy():
    assert "within 3%" in noise_verdict(0.029)
    assert "too noisy to say" in noise_verdict(0.031)


def test_inputs_are_many_enough_to_leave_the_cache():
    assert harness.input_sets(1) == harness.MAX_SETS
    assert harness.input_sets(64 << 20) == 2
    assert harness.input_sets(20 << 20) * (20 << 20) >= harness.CACHE_BYTES
    assert harness.input_sets(1 << 40) == 2


def read(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def a_row(**changes):
    values = dict(
        operator="op", geometry="g", dtype="float32", layout="contiguous", active=0.5,
        provider="ours", dense_ms=4.0, ms=2.0, p20=1.9, p80=2.2, speedup=2.0,
    )  # fmt: skip
    return Row(**(values | changes))


def test_csv_holds_the_row_and_where_it_was_measured(tmp_path):
    path = tmp_path / "machine" / "op.csv"
    harness.write_csv(path, [a_row(ceiling_ms=1.5, path="packed")])
    (row,) = read(path)
    assert row["ms"] == "2"
    assert row["gb_s"] == ""
    assert row["path"] == "packed"
    assert row["torch"] == torch.__version__
    assert row["threads"] == str(torch.get_num_threads())
    assert row["device"]
    assert row["commit"]


def test_table_heads_each_geometry_once():
    rows = [
        a_row(),
        a_row(provider="dense"),
        a_row(geometry="h", ceiling_ms=1.0, ceiling_share=0.5),
    ]
    text = harness.table(rows)
    assert text.count("provider") == 2
    assert text.splitlines()[0] == "op  g  float32  contiguous"
    assert text.splitlines()[-1].split()[-2:] == ["4.00x", "50%"]


def test_results_are_filed_by_machine(monkeypatch):
    monkeypatch.setattr(harness, "device_name", lambda device: "AMD EPYC (Milan) 7B13")
    monkeypatch.setattr(harness.native, "available", lambda: True)
    monkeypatch.setattr(harness.native, "cpu_isa", lambda: "avx2")
    assert harness.results_path("layers").parts[-2:] == ("amd-epyc-milan-7b13-avx2", "layers.csv")
    monkeypatch.setattr(harness.native, "available", lambda: False)
    assert harness.results_path("layers").parts[-2:] == ("amd-epyc-milan-7b13", "layers.csv")


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.name}-{c.layout}-{c.dtype}")
def test_every_case_builds_and_counts_its_work(case):
    with torch.device("meta"):
        layer, x = case.layer("meta"), torch.empty(case.input, dtype=case.dtype)
        output = layer(x)
    assert case.reason
    assert case.neurons == output.shape[-1 if output.dim() == 2 else 1]
    assert case.macs() == output.numel() * layer.weight.numel() // case.neurons
    assert len([c for c in CASES if (c.geometry, c.layout) == (case.geometry, case.layout)]) == 1


def test_channels_last_cases_are_channels_last():
    contiguous, last = conv("one", (2, 8, 4, 4), 16, 3, "test")
    assert contiguous.example().is_contiguous()
    assert last.example().is_contiguous(memory_format=torch.channels_last)
    assert last.layer().weight.is_contiguous(memory_format=torch.channels_last)


SMALL = [
    *conv("conv", (2, 8, 6, 6), 16, 3, "test", stride=2),
    *conv("depthwise", (2, 8, 6, 6), 8, 3, "test", depthwise=True),
    *linear("linear", 12, 8, 16, "test"),
    *linear("columns", 12, 8, 16, "test", kind="columns"),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda c: f"{c.name}-{c.layout}")
def test_every_provider_computes_the_gradients_it_stands_for(case: Case):
    torch.manual_seed(0)
    active = neq.ActiveSet.from_index([1, 4, 6], case.neurons)
    x = case.example()
    dy = torch.randn_like(case.layer()(x))
    gradients = {}
    for name, run in layers.backwards(case, active, [x], [dy]).items():
        run.prepare(0)
        run.run(0)
        weight, bias = run.layer.parameters()
        gradients[name] = (run.inputs[0].grad, weight.grad, bias.grad)
    dx, dw, db = gradients["dense"]
    torch.testing.assert_close(gradients["wgrad off"][0], dx)
    assert gradients["wgrad off"][1:] == (None, None)
    dim = int(case.kind == "columns")
    dw, db = dw.index_fill(dim, active.frozen, 0), db.index_fill(0, active.frozen, 0)
    for name in {"masked", "naive", "ours, propagate=all"} & set(gradients):
        torch.testing.assert_close(gradients[name], (dx, dw, db), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        gradients["ours, propagate=active"][1:], (dw, db), rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(gradients["ours, propagate=active"][0], dx)


@pytest.mark.parametrize("active", [[1, 4, 6], [1, 4]])
def test_times_of_wrong_gradients_are_refused(active):
    case = SMALL[0]
    x = case.example()
    sets = (neq.ActiveSet.from_index(chosen, case.neurons) for chosen in ([1, 4, 6], active))
    runs, others = (
        layers.backwards(case, a, [x], [torch.ones_like(case.layer()(x))]) for a in sets
    )
    torchs, ours = runs["masked"], others["ours, propagate=all"]
    ours.layer.load_state_dict(torchs.layer.state_dict())
    ours.record()
    if len(active) == 3:
        layers.check_gradients(torchs, ours)
    else:
        with pytest.raises(RuntimeError, match="do not trust this build"):
            layers.check_gradients(torchs, ours)


def test_ceilings_follow_their_definitions(monkeypatch):
    times = {"dense": 10.0, "wgrad off": 6.0, "masked": 11.0, "naive": 9.0}
    times |= {"ours, propagate=all": 8.0, "ours, propagate=active": 4.0}
    fixed = {name: Timing(value, value, value) for name, value in times.items()}
    monkeypatch.setattr(
        layers, "interleave", lambda providers, **_: {n: fixed[n] for n in providers}
    )
    (case,) = linear("linear", 12, 8, 16, "test")
    rows = {row.provider: row for row in layers.measure(case, 0.25, 0.0, "cpu")}
    assert "wgrad off" not in rows
    assert rows["ours, propagate=all"].ceiling_ms == pytest.approx(6 + 0.25 * 4)
    assert rows["ours, propagate=all"].ceiling_share == pytest.approx(7 / 8)
    assert rows["ours, propagate=active"].ceiling_ms == pytest.approx(2.5)
    assert rows["masked"].speedup == pytest.approx(10 / 11)
    useful = 2 * (1 + 0.25) * 12 * 8 * 16
    assert rows["ours, propagate=all"].tflop_s == pytest.approx(useful / 8e-3 / 1e12)


def test_layers_writes_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(layers, "CASES", SMALL[-2:])
    monkeypatch.setattr(layers, "dense_noise", lambda device: 0.01)
    path = tmp_path / "layers.csv"
    layers.main(["--seconds", "0", "--output", str(path)])
    rows = read(path)
    assert {row["active"] for row in rows} == {"1", "0.5", "0.25", "0.125"}
    assert {"dense", "naive", "ours, propagate=all"} <= {row["provider"] for row in rows}
    assert "dense against itself: 1.0% apart" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("times", "expected"),
    [((10.0, 10.0, 10.2), "+2.0%, within"), ((10.0, 10.0, 10.4), "+4.0%, ABOVE"),
     ((10.0, 11.0, 11.2), "within the noise (9.1%)")],
)  # fmt: skip
def test_overhead_is_judged_against_the_noise(times, expected):
    assert expected in overhead.verdict([a_row(ms=ms) for ms in times])


def test_overhead_measures_three_models(tmp_path):
    overhead.main(
        ["--networks", "small MLP", "--seconds", "0", "--output", str(tmp_path / "o.csv")]
    )
    rows = read(tmp_path / "o.csv")
    assert [row["provider"] for row in rows] == ["plain", "plain again", "converted, all active"]


@pytest.mark.parametrize("name", row_optimizers.MOVED)
def test_optimizers_are_measured_at_every_share(name):
    rows = row_optimizers.measure(
        name, lambda: torch.nn.Sequential(torch.nn.Linear(8, 20)), "small", 0.0, "cpu"
    )
    assert {row.active for row in rows} == set(row_optimizers.SHARES)
    assert [row.provider for row in rows[:5]] == [
        "torch, fused",
        "torch, fused, protect",
        "torch, foreach",
        "torch, foreach, protect",
        "neq.optim",
    ]
    ours = rows[-1]
    assert ours.ceiling_ms == pytest.approx(0.1 * ours.dense_ms)
    moved = row_optimizers.MOVED[name] * 4 * (8 * 20 + 20) * 0.1
    assert ours.gb_s == pytest.approx(moved / ours.ms / 1e6)


def test_protect_is_measured_on_whole_networks(monkeypatch):
    net = Network(
        "net", lambda: torch.nn.Sequential(torch.nn.Linear(8, 20)), None, None, ("tokens",), 0.8
    )
    monkeypatch.setitem(protect.NETWORKS, "net", net)
    rows = protect.measure_large("net", 0.5, 0.0, "cpu")
    assert [row.provider for row in rows[:2]] == ["SGD, fused", "SGD, fused, protect"]
    assert len(rows) == 2 * len(protect.STEPS) == 10
    for bare, guarded in zip(rows[::2], rows[1::2], strict=True):
        assert guarded.dense_ms == bare.ms == bare.dense_ms
        assert guarded.speedup == pytest.approx(bare.ms / guarded.ms)


def test_ways_that_are_apart_prepare_what_they_run_and_meet_nobody():
    seen = []

    def provider(name):
        return Provider(lambda i: seen.append((name, i)), lambda i: seen.append((name, i)))

    ways = harness.apart({"a": provider("a"), "b": provider("b"), "c": lambda i: None}, 6)
    assert ways["c"].prepare is None
    for turn in range(7):
        seen.clear()
        for name in "ab":
            ways[name].prepare(turn)
            ways[name].run(turn)
        assert seen == [(n, (turn + ahead) % 6) for n, ahead in (("a", 0), ("b", 2)) for _ in "pr"]


def test_layers_are_measured_apart(monkeypatch):
    asked = []
    apart = layers.apart
    monkeypatch.setattr(layers, "apart", lambda ways, sets: asked.append(sets) or apart(ways, sets))
    layers.measure(SMALL[0], 0.5, 0.0, "cpu")
    assert asked[0] > 1
