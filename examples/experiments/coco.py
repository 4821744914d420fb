"""NEq on COCO, DeepLabv3-ResNet50, the 21 classes of Pascal VOC:
``python -m examples.experiments.coco --data FOLDER``.

FOLDER holds train2017/, val2017/ and annotations/instances_{train,val}2017.json. Needs torchvision
for the network and pycocotools for the masks.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor, nn

from examples.experiments import images
from examples.experiments.cli import main
from examples.experiments.loading import Data, Sample, hold_out
from examples.experiments.metrics import IGNORED
from examples.experiments.recipe import Recipe, by_epoch, cross_entropy

# COCO's names of Pascal VOC's classes 1 to 20, in VOC's order; 0 is the background.
CLASSES = (
    "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorcycle", "person", "potted plant", "sheep", "couch",
    "train", "tv",
)  # fmt: skip
PROBE_IMAGES = 50
CROP, RESIZE = 480, 520
LEAST_AREA = 1000  # pixels of those classes, in a training image


@dataclass(frozen=True)
class Segmented:
    """COCO's images with class maps ``[H, W]``: 0 to 20, and 255 where objects overlap or crowd.

    For evaluation the shorter side becomes 520; with ``square``, the middle 480 x 480 of that.
    Training images are scaled to 0.5 to 2 times that, flipped and cut to 480 x 480.
    """

    folder: Path
    pictures: tuple[Mapping[str, Any], ...]
    annotations: Mapping[int, list[Mapping[str, Any]]]
    numbers: Mapping[int, int]
    square: bool = False

    @classmethod
    def of(cls, folder: Path, split: str, least_area: int = 0, square: bool = False) -> Segmented:
        path = folder / "annotations" / f"instances_{split}2017.json"
        if not path.exists():
            raise FileNotFoundError(f"--data: expected {path}; give the folder that COCO lies in")
        content = json.loads(path.read_text())
        numbers = {
            category["id"]: CLASSES.index(category["name"]) + 1
            for category in content["categories"]
            if category["name"] in CLASSES
        }
        annotations: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            if annotation["category_id"] in numbers:
                annotations[annotation["image_id"]].append(annotation)
        pictures = tuple(
            picture
            for picture in content["images"]
            if sum(a["area"] for a in annotations[picture["id"]]) >= least_area
        )
        return cls(folder / f"{split}2017", pictures, annotations, numbers, square)

    def __len__(self) -> int:
        return len(self.pictures)

    def sample(self, index: int, generator: Generator | None) -> Sample:
        picture = self.pictures[index]
        image = images.read(self.folder / picture["file_name"])
        classes = Image.fromarray(self.classes(picture))
        if generator is None:
            size = _scaled(image, RESIZE)
        else:
            size = _scaled(image, round(RESIZE * images.uniform(0.5, 2, generator)))
        pixels = images.to_tensor(image.resize(size, images.BILINEAR))
        target = torch.from_numpy(np.array(classes.resize(size, Image.Resampling.NEAREST))).long()
        if generator is not None:
            return _random_square(pixels, target, generator)
        return _square(pixels, target, 0.5, 0.5) if self.square else (pixels, target)

    def classes(self, picture: Mapping[str, Any]) -> np.ndarray:
        """The class map of a picture in its own size, uint8."""
        coco = _pycocotools()
        height, width = picture["height"], picture["width"]
        found = np.zeros((height, width), np.uint8)
        for annotation in self.annotations[picture["id"]]:
            shapes = annotation["segmentation"]
            if isinstance(shapes, list) or isinstance(shapes["counts"], list):
                shapes = coco.frPyObjects(shapes, height, width)
            mask = coco.decode(coco.merge(shapes) if isinstance(shapes, list) else shapes) > 0
            number = IGNORED if annotation["iscrowd"] else self.numbers[annotation["category_id"]]
            found[mask] = np.where(found[mask] == 0, number, IGNORED)
        return found


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ModuleNotFoundError(
            "COCO's masks need pycocotools: pip install pycocotools"
        ) from error
    return mask


def _scaled(image: Image.Image, shorter: int) -> tuple[int, int]:
    scale = shorter / min(image.size)
    width, height = (max(shorter, int(side * scale)) for side in image.size)
    return width, height


def _random_square(pixels: Tensor, target: Tensor, generator: Generator) -> Sample:
    if images.coin(generator):
        pixels, target = pixels.flip(-1), target.flip(-1)
    down, right = images.uniform(0, 1, generator), images.uniform(0, 1, generator)
    return _square(pixels, target, down, right)


def _square(pixels: Tensor, target: Tensor, down: float, right: float) -> Sample:
    """CROP x CROP at these shares of the room there is, filled up where the image ends."""
    height, width = target.shape
    fill = (0, max(0, CROP - width), 0, max(0, CROP - height))
    pixels = nn.functional.pad(pixels, fill)
    target = nn.functional.pad(target, fill, value=IGNORED)
    height, width = target.shape
    top, left = round(down * (height - CROP)), round(right * (width - CROP))
    rows, columns = slice(top, top + CROP), slice(left, left + CROP)
    return pixels[:, rows, columns], target[rows, columns]


def data(folder: Path) -> Data:
    everything = Segmented.of(folder, "train", LEAST_AREA, square=True)
    train, probe = hold_out(everything, PROBE_IMAGES)
    return Data(train, Segmented.of(folder, "val"), probe)


def deeplab() -> nn.Module:
    """torchvision's, on a backbone trained on ImageNet.

    Raises:
        ModuleNotFoundError: torchvision is not there, or not that of the torch installed.
    """
    try:
        from torchvision.models.segmentation import deeplabv3_resnet50
    except (ImportError, RuntimeError, OSError) as error:
        raise ModuleNotFoundError(
            "DeepLabv3 needs the torchvision of your torch: install both from one index, see "
            "https://pytorch.org/get-started/locally"
        ) from error
    return deeplabv3_resnet50(
        weights=None, weights_backbone="IMAGENET1K_V1", num_classes=len(CLASSES) + 1, aux_loss=True
    )


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The auxiliary head learns ten times as fast."""
    aux = list(model.aux_classifier.parameters())
    rest = [p for part in (model.backbone, model.classifier) for p in part.parameters()]
    groups = [{"params": rest}, {"params": aux, "lr": 0.2}]
    return torch.optim.SGD(groups, 0.02, momentum=0.9, weight_decay=1e-4)


def loss(output: Any, target: Tensor) -> Tensor:
    return cross_entropy(output, target) + 0.5 * cross_entropy(output["aux"], target)


RECIPE = Recipe(
    name="coco-deeplabv3",
    data=data,
    model=deeplab,
    optimizer=optimizer,
    schedule=by_epoch(lambda epoch, epochs: max(0.0, 1 - epoch / epochs) ** 0.9),
    epochs=30,
    batch_size=32,
    classes=len(CLASSES) + 1,
    metric="miou",
    epsilon=2e-2,
    evaluation_batch=1,
    loss=loss,
)

if __name__ == "__main__":
    main(RECIPE)
