"""The grid of runs, its files, and what the report makes of them. Training is tested elsewhere."""

from dataclasses import replace

import pytest
from matplotlib.image import imread

from examples import evidence
from examples.evidence import Finished, Job
from examples.evidence_report import compared
from examples.experiments import digits
from examples.experiments.table import Result


def finished(job, metric=0.9, frozen=0.5, backward_ms=30.0, dense_ms=40.0):
    numbers = dict(final_frozen=0.9, paper=50.0, wgrad=50.0, backward=75.0, probe=1.0, probe_s=0.1)
    one = Result(seed=job.seed, metric=metric, frozen=frozen, backward_ms=backward_ms, **numbers)
    return Finished(job, one, dense_ms)


def test_every_setting_is_run_once_per_seed_and_neq_before_random():
    jobs = list(evidence.jobs([1, 2]))
    keys = [job.key for job in jobs]
    assert len(set(keys)) == len(keys)
    main = [
        job for job in jobs if (job.method, job.value, job.propagate) in evidence.MAIN[job.network]
    ]
    main = [job for job in main if (job.momentum, job.decay) == evidence.PAPERS_SETUP]
    assert main == jobs[: len(main)]
    assert [job.seed for job in main] == sorted(job.seed for job in main)
    for network, optimizer in digits.LEARNING_RATES:
        arms = [
            (job.method, job.value, job.propagate)
            for job in jobs
            if (job.seed, job.network, job.optimizer) == (1, network, optimizer)
            and (job.momentum, job.decay) == evidence.PAPERS_SETUP
        ]
        assert arms.index(("neq", 1e-3, "all")) < arms.index(("random", None, "all"))
        for propagate in ("all", "active"):
            assert {v for m, v, p in arms if (m, p) == ("neq", propagate)} == {1e-4, 1e-3, 5e-3}
    setups = {
        (job.momentum, job.decay)
        for job in jobs
        if (job.method, job.value, job.optimizer) == ("neq", 1e-3, "sgd")
    }
    assert setups == {(m, d) for m in (0.0, 0.6, 0.9) for d in (True, False)}


def test_random_gets_neqs_own_budget():
    job = Job(2, "vit", "sgd", "random", None)
    neq = replace(job, method="neq", value=1e-3)
    done = [finished(replace(neq, seed=1), frozen=0.1), finished(neq, frozen=0.25)]
    assert evidence._own_budget(job, done) == 0.75


def test_finished_runs_are_read_back_and_not_run_again(tmp_path, monkeypatch):
    path = tmp_path / "runs.csv"
    runs = [
        finished(Job(1, "vit", "adamw", "dense", None)),
        finished(Job(1, "vit", "sgd", "neq", 1e-3, "active", 0.6, False)),
        finished(Job(1, "resnet", "sgd", "random", 0.8)),
    ]
    for one in runs:
        evidence.append(path, one)
    assert evidence.read(path) == runs
    ran = []

    def run(job, done, epochs):
        ran.append(job.key)
        return finished(job if job.value or job.method == "dense" else replace(job, value=0.5))

    monkeypatch.setattr(evidence, "run", run)
    evidence.main(["--seeds", "1", "--output-dir", str(tmp_path)])
    every = {job.key for job in evidence.jobs([1])}
    assert set(ran) == every - {runs[0].job.key, runs[2].job.key}
    ran.clear()
    evidence.main(["--seeds", "1", "--output-dir", str(tmp_path)])
    assert ran == []
    assert imread(tmp_path / "evidence.png")[..., :3].std() > 0.02


def test_report_compares_with_dense_runs_of_the_same_seed(tmp_path):
    dense = Job(1, "resnet", "sgd", "dense", None)
    runs = [
        finished(dense, metric=0.95, backward_ms=40.0),
        finished(replace(dense, method="neq", value=1e-3), metric=0.90),
        finished(replace(dense, method="neq", value=1e-3, seed=2), metric=0.5),
    ]
    arms = compared(runs)
    assert [(arm.label, arm.accuracy) for arm in arms] == [
        ("dense", "95.00"),
        ("NEq 0.001", "90.00"),
    ]
    assert arms[1].times == [75.0]
    for one in runs:
        evidence.append(tmp_path / "runs.csv", one)
    evidence.main(["--report", "--output-dir", str(tmp_path)])
    text = (tmp_path / "evidence.md").read_text()
    assert "| NEq 0.001 | 1 | 90.00 | 50.0 | 90.0 | 100.0 | 100.0 | 100.0 | 75 |" in text


def test_without_a_dense_run_there_is_nothing_to_compare(tmp_path):
    evidence.append(tmp_path / "runs.csv", finished(Job(1, "vit", "sgd", "neq", 1e-3)))
    with pytest.raises(ValueError, match="expected a dense run"):
        evidence.main(["--report", "--output-dir", str(tmp_path)])


@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_one_real_run(network):
    one = evidence.run(Job(1, network, "adamw", "neq", 1.0), [], epochs=2)
    assert 0.5 < one.result.final_frozen < 1
    assert one.result.wgrad < one.result.backward
    assert one.dense_ms > 0
