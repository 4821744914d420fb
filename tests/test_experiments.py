"""Every experiment for a few steps, on tiny files in the formats the data sets come in."""

import csv

import numpy as np
import pytest
import torch
from experiment import cifar_arrays, run, small, tiny_cifar, write_cifar
from PIL import Image
from torch import Generator

from examples.experiments import cifar10, imagenet, images, swin
from examples.experiments.methods import Method
from examples.experiments.trainer import Run, Settings
from examples.resnet import ResNet

TABLE = ("paper", "wgrad", "backward", "frozen", "backward, ms")


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    return write_cifar(tmp_path_factory.mktemp("cifar"))


def test_cifar_reads_both_formats_alike(cifar, tmp_path):
    read = cifar10.read(cifar, cifar10.TEST)
    pixels, labels = cifar_arrays(5, 12)
    assert read.labels.tolist() == labels.tolist()
    red = (pixels[3, :1024].reshape(32, 32) / 255 - cifar10.MEAN[0]) / cifar10.STD[0]
    assert np.allclose(read.images[3, 0], red, atol=1e-6)
    (tmp_path / "cifar-10-batches-bin").symlink_to(cifar / "cifar-10-batches-bin")
    assert torch.equal(cifar10.read(tmp_path, cifar10.TEST).images, read.images)


def test_cifar_names_the_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-py or .*unpack"):
        cifar10.read(tmp_path, cifar10.TEST)


def test_cifar_trains_two_seeds_and_prints_the_papers_table(cifar, tmp_path, capsys):
    results = run(tiny_cifar(), cifar, tmp_path, "--seeds", "1", "2")
    assert [one.seed for one in results] == [1, 2]
    printed = capsys.readouterr().out
    assert all(word in printed for word in (*TABLE, "mean", "std"))
    folder = tmp_path / "runs" / "cifar10-resnet32" / "neq-0.001"
    with (folder / "seed-2" / "epochs.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["metric"]) == results[0].metric
    assert results[0].backward_ms > 0
    assert results[0].probe > results[0].paper


@pytest.mark.parametrize(
    ("method", "frozen"), [("dense", None), ("random", 0.5), ("budget", 0.3), ("neq", 10.0)]
)
def test_every_method_trains(cifar, tmp_path, method, frozen):
    options = [] if frozen is None else ["--value", str(frozen)]
    (one,) = run(tiny_cifar(epochs=3), cifar, tmp_path, "--method", method, *options)
    if frozen is None:
        assert (one.frozen, one.probe) == (0, 0)
        return
    assert 0.3 < one.final_frozen < 1
    if method == "neq":  # an epsilon that freezes everything that is watched, from epoch 2 on
        sizes = [m.weight.shape[0] for m in ResNet(1).modules() if hasattr(m, "weight")]
        assert one.final_frozen == pytest.approx(1 - 10 / sum(sizes))


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_wanted_time_trains(cifar, tmp_path, deterministic):
    torch.use_deterministic_algorithms(deterministic)
    recipe = tiny_cifar(epochs=3)
    training = Run(recipe, Method("time", 1.5), Settings(), cifar, tmp_path)
    rows = training.train()
    tracker = training.tracker
    assert tracker.selector.calibrate is not deterministic
    noted = [epoch.values for epoch in tracker.history]
    assert [set(values) for values in noted] == [
        {"top1", "backward_ms"}, *[{"top1", "backward_ms", "predicted_ms"}] * 2, {"predicted_ms"},
    ]  # fmt: skip
    assert [values.get("backward_ms") for values in noted[:3]] == [r["backward_ms"] for r in rows]
    resumed = Run(recipe, Method("time", 1.5), Settings(), cifar, tmp_path)
    assert resumed.tracker.selector.prediction == tracker.selector.prediction


def test_mixed_precision_trains(cifar, tmp_path):
    dtypes = set()

    def loss(output, target):
        dtypes.add(output.dtype)
        return cifar10.RECIPE.loss(output, target)

    recipe = tiny_cifar(epochs=1, loss=loss)
    run(recipe, cifar, tmp_path, "--amp", "bf16", "--channels-last")
    run(recipe, cifar, tmp_path / "fp16", "--amp", "fp16")
    assert dtypes == {torch.bfloat16, torch.float16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """ImageNet's folders: 2 classes, 6 training images each, of several sizes and modes."""
    root = tmp_path_factory.mktemp("imagenet")
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name in ("n01440764", "n01443537"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                shape = (40 + 7 * i, 90 - 9 * i, 3) if i % 2 else (50, 60)
                pixels = random.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}_{i}.JPEG")
    return root


def tiny_resnet18():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        layer_type="basic", depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], embedding_size=8,
        num_labels=1000,
    )  # fmt: skip
    return ResNetForImageClassification(config)


def test_imagenet_trains(folders, tmp_path):
    recipe = small(imagenet.RECIPE, model=tiny_resnet18)
    (one,) = run(recipe, folders, tmp_path, "--workers", "1", "--value", "0.5")
    assert 0 <= one.metric <= 1
    assert one.final_frozen > 0


def test_imagenets_network_is_resnet18():
    assert sum(p.numel() for p in imagenet.resnet18().parameters()) == 11_689_512


def test_image_folder_numbers_classes_by_name(folders):
    found = images.ImageFolder.of(folders / "train")
    assert found.labels == (0,) * 6 + (1,) * 6
    image, label = found.sample(7, None)
    assert (image.shape, label) == ((3, 224, 224), 1)
    with pytest.raises(FileNotFoundError, match=r"expected images in .*/<class>/"):
        images.ImageFolder.of(folders / "nothing")


def test_crops_stay_inside_and_vary():
    gradient = np.stack([np.tile(np.arange(100, dtype=np.uint8), (60, 1))] * 3, axis=-1)
    generator = Generator().manual_seed(0)
    image = Image.fromarray(gradient)
    crops = [
        np.array(images.random_resized_crop(image, 32, generator, images.BILINEAR))
        for _ in range(40)
    ]
    widths = [int(crop[0, -1, 0]) - int(crop[0, 0, 0]) for crop in crops]
    assert {crop.shape for crop in crops} == {(32, 32, 3)}
    assert min(widths) < 35
    assert max(widths) > 65
    narrow = Image.new("RGB", (400, 4))
    assert images.random_resized_crop(narrow, 32, generator, images.BILINEAR).size == (32, 32)


def test_swin_trains(folders, tmp_path):
    transformers = pytest.importorskip("transformers")

    def tiny_swin():
        config = transformers.SwinConfig(
            image_size=224, embed_dim=8, depths=[1, 1], num_heads=[1, 2], num_labels=2,
            patch_size=16, drop_path_rate=0.2,
        )  # fmt: skip
        return transformers.SwinForImageClassification(config)

    recipe = small(swin.RECIPE, model=tiny_swin, classes=2)
    (one,) = run(recipe, folders, tmp_path, "--value", "0.5")
    assert one.final_frozen > 0.9  # its Linears are called, so that they can be watched


def test_swin_asks_transformers_for_the_pretrained_network(monkeypatch):
    transformers = pytest.importorskip("transformers")
    asked = {}
    monkeypatch.setattr(
        transformers.SwinForImageClassification, "from_pretrained",
        lambda name, **options: asked.update(options, name=name),
    )  # fmt: skip
    swin.swin_b()
    assert asked["name"] == "microsoft/swin-base-patch4-window7-224-in22k"
    assert asked["num_labels"] == 1000
