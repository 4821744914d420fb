import csv

import pytest
import torch
from matplotlib.image import imread

from examples import digits, prune_digits, pruning_runs
from examples.pruning_runs import Levels, one_shot, prune
from examples.pruning_training import Settings, Split, judged, train_dense
from neq_kernels import pruning

SHORT = ["--dense", "1", "--epochs", "2", "--tune", "1", "--move", "1", "--train-images", "100"]


@pytest.fixture(autouse=True)
def fewer_amounts(monkeypatch):
    monkeypatch.setattr(pruning_runs, "AMOUNTS", (0.5, 0.9))


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_prune_digits_leaves_tables_and_a_figure(tmp_path, capsys):
    command = ["--networks", "LeNet-5", *SHORT, "--output-dir", str(tmp_path)]
    prune_digits.main([*command, "--seeds", "1"])
    found = rows(tmp_path / "pruning.csv")
    methods = ["dense", "one-shot"]
    for method in ("gradual", "SeReNe", "LOBSTER"):
        methods += [method, f"one-shot at {method}'s"]
    assert [row["method"] for row in found] == methods
    assert all(float(row["forward_ms"]) > 0 for row in found)
    for row, alike in zip(found[2::2], found[3::2], strict=True):
        assert float(alike["zeroed"]) == pytest.approx(float(row["zeroed"]), abs=1e-3)
    moved = [row["method"] for row in rows(tmp_path / "transfer.csv")]
    assert moved == ["dense", "one-shot at gradual's", "gradual"]
    assert imread(tmp_path / "pruning.png")[..., :3].std() > 0.05
    assert "linear probe" in capsys.readouterr().out

    points = (tmp_path / "points.csv").read_text()
    # As if it had been stopped before the last file: it is made again.
    (tmp_path / "pruning.csv").unlink()
    with pytest.raises(ValueError, match="finished runs"):
        prune_digits.main(["--report", "--output-dir", str(tmp_path)])
    prune_digits.main([*command, "--seeds", "1", "2"])
    both = (tmp_path / "pruning.csv").read_text()
    assert [row["seed"] for row in rows(tmp_path / "pruning.csv")] == ["1"] * 8 + ["2"] * 8
    assert (tmp_path / "points.csv").read_text().startswith(points)
    table = (tmp_path / "pruning.md").read_text()
    assert "±" in table

    # What is there, times included, is not run again.
    (tmp_path / "pruning.md").unlink()
    prune_digits.main([*command, "--seeds", "2", "1"])
    assert (tmp_path / "pruning.csv").read_text() == both
    assert (tmp_path / "pruning.md").read_text() == table
    with pytest.raises(ValueError, match="without runs of LeNet-5"):
        prune_digits.main([*command, "--tune", "2"])


def test_levels_are_the_best_of_their_share():
    settings = Settings(dense=2, epochs=3, tune=2)
    data = Split.of(digits.load("cpu", train_images=200), range(10))
    assert len(data.validation[1]) == 40
    dense = train_dense(settings, data)
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    levels = prune("one-shot", dense, settings, data)
    assert sorted(levels.best) == [0.5, 0.9]
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    for level, (loss, right, model) in levels.best.items():
        assert pruning.share_zeroed(model) == pytest.approx(level, abs=1e-4)
        assert judged(model, data.validation) == (loss, right)
    # None is good enough.
    levels.best = {key: (loss, -1.0, model) for key, (loss, _, model) in levels.best.items()}
    assert levels.most_pruned(dense) is dense
    alike = one_shot(0.7, dense, settings, data).lowest()
    assert pruning.share_zeroed(alike) == pytest.approx(0.7, abs=1e-4)
    own = Levels(data)
    own.note(alike)
    assert own.points("one-shot", 1)[0].error == 1 - judged(alike, data.test)[1]
