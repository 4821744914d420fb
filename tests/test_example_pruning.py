import csv

from matplotlib.image import imread

from examples import prune_digits
from examples.pruning_runs import METHODS


def test_prune_digits_leaves_tables_and_a_figure(tmp_path, capsys):
    prune_digits.main(
        ["--networks", "LeNet-5", "--seeds", "1", "--dense", "1", "--epochs", "2", "--tune", "1",
         "--train-images", "150", "--output-dir", str(tmp_path)]
    )  # fmt: skip
    with (tmp_path / "pruning.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["dense", *METHODS]
    assert all(float(row["forward_ms"]) > 0 for row in rows)
    assert all(0 <= float(row["zeroed"]) < 1 for row in rows)
    with (tmp_path / "transfer.csv").open(newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["dense", "one-shot", "gradual"]
    assert imread(tmp_path / "pruning.png")[..., :3].std() > 0.05
    assert "linear_probe" in capsys.readouterr().out
