"""COCO, as test_experiments has the others."""

import json
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from experiment import run, small
from PIL import Image
from torch import Generator, nn

from examples.experiments import coco

SQUARE = [[10.0, 10.0, 50.0, 10.0, 50.0, 50.0, 10.0, 50.0]]


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory):
    """COCO's files: 8 training images, 2 for validation; polygons, and a crowd's run lengths."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    random = np.random.default_rng(0)
    names = {1: "person", 17: "cat", 99: "kite"}
    categories = [{"id": number, "name": name} for number, name in names.items()]
    for split, count in (("train", 8), ("val", 2)):
        (root / f"{split}2017").mkdir()
        pictures, annotations = [], []
        for i in range(count):
            width, height = 80 + 10 * i, 64
            name = f"{i:012}.jpg"
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{split}2017" / name)
            pictures.append({"id": i, "file_name": name, "width": width, "height": height})
            annotation = {"image_id": i, "area": 1600 if i else 900, "iscrowd": 0}
            annotations.append({**annotation, "category_id": 1, "segmentation": SQUARE})
            annotations.append({**annotation, "category_id": 99, "segmentation": SQUARE, "area": 0})
        crowd = {"size": [64, 90], "counts": [0, 64, 64 * 89]}  # the first column
        crowded = {"image_id": 1, "area": 64, "iscrowd": 1, "category_id": 17}
        annotations.append({**crowded, "segmentation": crowd})
        content = {"images": pictures, "annotations": annotations, "categories": categories}
        path = root / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(content))
    return root


# numpy 2 finds fault with what pycocotools returns; it goes on all the same.
NUMPY_2 = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def pycocotools():
    return pytest.importorskip("pycocotools")


@NUMPY_2
def test_coco_masks_have_vocs_numbers(coco_folder, pycocotools):
    train = coco.Segmented.of(coco_folder, "train", coco.LEAST_AREA)
    assert len(train) == 7  # one has too little of the classes
    found = train.classes(train.pictures[0])
    assert found.shape == (64, 90)
    person = found[10:50, 10:50]
    assert (person == 15).all()
    assert (found[:, 0] == 255).all()
    assert (found == 15).sum() == 1600
    overlapping = {**train.annotations, 1: 2 * train.annotations[1][:1]}
    twice = replace(train, annotations=overlapping).classes(train.pictures[0])
    assert (twice == 255).sum() == 1600


@NUMPY_2
def test_coco_transforms_image_and_classes_alike(coco_folder, pycocotools):
    train = coco.Segmented.of(coco_folder, "train", coco.LEAST_AREA, square=True)
    image, target = train.sample(2, None)
    assert (image.shape, target.shape) == ((3, 480, 480), (480, 480))
    val = coco.Segmented.of(coco_folder, "val")
    image, target = val.sample(1, None)
    assert (image.shape, target.shape) == ((3, 520, 731), (520, 731))
    assert (target == 15).float().mean() == pytest.approx(1600 / (64 * 90), rel=0.02)
    image, target = train.sample(2, Generator().manual_seed(0))
    assert (image.shape, target.shape) == ((3, 480, 480), (480, 480))


class TinyDeepLab(nn.Module):
    """What torchvision's has: backbone, classifier, aux_classifier, and two outputs."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 16, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.classifier = nn.Conv2d(8, 21, 1)
        self.aux_classifier = nn.Conv2d(8, 21, 1)

    def forward(self, x):
        size, y = x.shape[-2:], self.backbone(x)
        heads = {"out": self.classifier(y), "aux": self.aux_classifier(y)}
        return {k: nn.functional.interpolate(v, size) for k, v in heads.items()}


@NUMPY_2
def test_coco_trains_on_torchvisions_network(coco_folder, pycocotools, tmp_path, monkeypatch):
    asked = {}
    segmentation = ModuleType("segmentation")
    segmentation.deeplabv3_resnet50 = lambda **options: asked.update(options) or TinyDeepLab()
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchvision.models.segmentation", segmentation)
    monkeypatch.setattr(coco, "PROBE_IMAGES", 2)
    (one,) = run(small(coco.RECIPE, epochs=2), coco_folder, tmp_path)
    assert 0 <= one.metric <= 1
    assert (asked["num_classes"], asked["aux_loss"]) == (21, True)


def test_without_torchvision_the_remedy_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models.segmentation", None)
    with pytest.raises(ModuleNotFoundError, match="torchvision of your torch: install") as caught:
        coco.deeplab()
    assert "\n" not in str(caught.value)


def test_the_auxiliary_head_learns_ten_times_as_fast():
    optimizer = coco.optimizer(TinyDeepLab())
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.2]
    output = {"out": torch.zeros(1, 21, 2, 2), "aux": torch.zeros(1, 21, 2, 2)}
    loss = coco.loss(output, torch.zeros(1, 2, 2, dtype=torch.int64))
    assert loss.item() == pytest.approx(1.5 * np.log(21), rel=1e-5)
