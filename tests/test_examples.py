import csv

import pytest
import torch
from matplotlib.image import imread
from torch import nn

import neq_kernels as neq
from examples import digits, seeds, train_digits
from examples.figure import title
from examples.resnet import Shortcut, resnet32
from examples.results import COLUMNS, Backward, last_epochs, summary
from examples.timing import Ceiling
from examples.training import Epoch, Row, Settings, compare

TINY = ["--train-images", "32", "--batch-size", "16"]


def row(epoch=1, frozen=0.5, dense_ms=100.0, neq_ms=80.0, ceiling_ms=75.0, accuracy=0.9):
    return Row(
        epoch,
        Epoch(0.1, 0.95, dense_ms, 200.0),
        Epoch(0.1, accuracy, neq_ms, 180.0),
        frozen,
        1 - frozen,
        ceiling_ms,
        0.1,
    )


def test_resnet32_has_the_papers_neurons():
    counts = dict.fromkeys((nn.Conv2d, nn.BatchNorm2d, nn.Linear), 0)
    for module in resnet32().modules():
        if type(module) in counts:
            counts[type(module)] += module.weight.shape[0]
    assert list(counts.values()) == [1136, 1136, 10]


def test_option_a_takes_every_second_pixel_and_appends_zero_channels():
    x = torch.randn(2, 3, 6, 6)
    y = Shortcut(added_channels=5, stride=2)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:5], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 5:].any()
    assert not list(Shortcut(5, 2).parameters())


def test_resnet32_halves_the_image_twice():
    shapes = []
    model = resnet32().eval()
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda m, x, y: shapes.append(tuple(y.shape[1:])))
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


@pytest.fixture(scope="module")
def data():
    return digits.load("cpu", torch.channels_last)


def test_digits_are_split_into_disjoint_sets(data):
    assert (len(data.labels), len(data.test_labels), len(data.probe)) == (1387, 360, 50)
    flat = torch.cat([data.images, data.test_images, data.probe]).flatten(1)
    assert len(flat.unique(dim=0)) == 1797
    assert data.test_labels.bincount().min() >= 34
    assert data.images.mean().abs() < 1e-4
    assert (data.images.std() - 1).abs() < 1e-3


def test_batches_depend_on_seed_and_epoch_alone(data):
    first = list(data.batches(500, seed=1, epoch=3))
    again = list(data.batches(500, seed=1, epoch=3))
    assert [len(labels) for _, labels in first] == [500, 500, 387]
    for (images, labels), (other_images, other_labels) in zip(first, again, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in first)
    for seed, epoch in ((2, 3), (1, 4)):
        assert not torch.equal(next(data.batches(500, seed, epoch))[1], first[0][1])


def test_the_default_run_decays_after_40_and_60_percent():
    assert Settings().epochs == 20
    assert Settings().milestones == [8, 12]


def test_both_arms_are_the_same_network_until_neurons_freeze():
    data = digits.load("cpu", train_images=32)
    (row,) = compare(Settings(epochs=1, batch_size=16), data)
    assert row.neq.loss == row.dense.loss
    assert row.neq.accuracy == row.dense.accuracy
    assert (row.frozen, row.wgrad) == (0, 1)
    assert row.ceiling_ms == pytest.approx(row.dense.backward_ms)


def test_train_digits_leaves_a_table_and_a_figure(tmp_path, capsys):
    folder = tmp_path / "new" / "folder"
    options = ["--epochs", "2", "--memory-format", "channels_last", "--propagate", "active"]
    train_digits.main([*TINY, *options, "--output-dir", str(folder)])
    with (folder / "epochs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert tuple(rows[0]) == COLUMNS
    assert all(float(row["neq_backward_ms"]) > 0 for row in rows)
    image = imread(folder / "epochs.png")
    assert min(image.shape[:2]) > 800
    assert image[..., :3].std() > 0.05
    printed = capsys.readouterr().out
    assert "Test accuracy" in printed
    assert "epochs.png" in printed


def test_seeds_tabulates_each_seed_and_the_mean(tmp_path, capsys):
    seeds.main([*TINY, "--epochs", "1", "--seeds", "3", "4", "--output-dir", str(tmp_path)])
    with (tmp_path / "seeds-all.csv").open(newline="") as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["3", "4"]
    assert "mean" in capsys.readouterr().out


def test_seed_statistics():
    text = seeds.table([(1, 0.98, 0.97, 1.2), (2, 0.96, 0.97, 1.4)])
    assert "mean    97.00%   97.00%   +0.00 points      1.30x" in text
    assert "std      1.41%    0.00%" in text


@pytest.mark.parametrize("option", ["--epochs", "--batch-size", "--train-images"])
def test_counts_must_be_positive(option, capsys):
    with pytest.raises(SystemExit):
        train_digits.main([option, "0"])
    assert "expected a whole number from 1 on, got 0" in capsys.readouterr().err


def test_title_says_what_the_run_found():
    assert title([row(neq_ms=60.0, accuracy=0.94)]).startswith("NEq spends 40% less time")
    assert title([row(neq_ms=110.0)]).startswith("NEq spends 10% more time")
    assert "at 94.0% test accuracy (dense: 95.0%)" in title([row(accuracy=0.94)])


def test_summary_separates_last_and_partly_frozen_epochs():
    rows = [row(epoch, frozen=0.0, neq_ms=100.0, ceiling_ms=100.0) for epoch in range(1, 7)]
    rows += [row(7, frozen=0.5, neq_ms=80.0, ceiling_ms=60.0), row(8, frozen=1.0, neq_ms=20.0)]
    assert [r.epoch for r in last_epochs(rows)] == [7, 8]
    lines = summary(rows).splitlines()
    assert "last 2 epochs: dense 100.0 ms, NEq 50.0 ms: 2.00x" in lines[3]
    assert (
        "1 epochs partly frozen: dense 100.0 ms, NEq 80.0 ms: 1.25x (ceiling 1.67x, 75%" in lines[4]
    )


def test_backward_over_epochs_is_a_ratio_of_means():
    over = Backward.over([row(dense_ms=100.0, neq_ms=100.0), row(dense_ms=300.0, neq_ms=100.0)])
    assert (over.dense, over.neq) == (200.0, 100.0)


class TestCeiling:
    @pytest.fixture
    def twin(self):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Flatten(),
            nn.Linear(4 * 64, 10),
        )

    @pytest.fixture
    def batch(self):
        return torch.randn(4, 3, 8, 8), torch.randint(10, (4,))

    def active(self, **counts):
        sizes = {"0": 8, "1": 8, "2": 4, "3": 4, "5": 10}
        return {
            name: neq.ActiveSet.from_index(range(counts.get(f"_{name}", size)), size)
            for name, size in sizes.items()
        }

    def test_share_counts_multiplications(self, twin, batch):
        ceiling = Ceiling(twin, batch, "all")
        first, second, head = 4 * 64 * 8 * 27, 4 * 64 * 4 * 72, 4 * 2560
        share = ceiling.wgrad_share(self.active(_0=4, _2=1))
        assert share == pytest.approx((first / 2 + second / 4 + head) / (first + second + head))

    def test_floor_ends_at_the_first_active_layer(self, twin, batch, monkeypatch):
        ceiling = Ceiling(twin, batch, "all")
        reached = []
        monkeypatch.setattr(
            ceiling, "_floor_share", lambda depth: reached.append(depth) or 1 / 3 / (1 + depth)
        )
        everything = ceiling.milliseconds(self.active(), 30.0)
        assert everything == pytest.approx(30.0)
        assert reached == [0]
        prefix = self.active(_0=0, _1=0)
        assert ceiling.milliseconds(prefix, 30.0) == pytest.approx(
            10.0 / 3 + 20.0 * ceiling.wgrad_share(prefix)
        )

    def test_floor_computes_no_weight_gradient_and_nothing_below(self, twin, batch):
        ceiling = Ceiling(twin, batch, "all")
        ceiling._require(2, weights=False)
        assert ceiling._backward_ms() > 0
        names = {name for name, p in twin.named_parameters() if p.grad is not None}
        assert names == {"2.bias", "3.weight", "3.bias", "5.bias"}

    def test_floor_is_measured_once_against_the_whole_backward(self, twin, batch, monkeypatch):
        ceiling = Ceiling(twin, batch, "all")
        times = iter([4.0, 1.0, 6.0, 1.5, 5.0, 2.0, 7.0, 1.0, 5.0, 1.5])
        monkeypatch.setattr(ceiling, "_backward_ms", lambda: next(times))
        assert ceiling._floor_share(0) == pytest.approx(1.5 / 5)
        assert ceiling._floor_share(0) == pytest.approx(1.5 / 5)

    def test_active_propagation_shrinks_everything(self, twin, batch):
        ceiling = Ceiling(twin, batch, "active")
        half = self.active(_0=4, _2=2, _5=5)
        assert ceiling.milliseconds(half, 30.0) == pytest.approx(15.0)
