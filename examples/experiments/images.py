"""Reading, cropping and scaling images with Pillow; every draw comes from the generator given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from examples.experiments.loading import Sample

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


def read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """``[3, H, W]``, normalised by the mean and deviation of ImageNet."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def uniform(low: float, high: float, generator: Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def integer(bound: int, generator: Generator) -> int:
    """From 0 to ``bound``, which is included."""
    return int(torch.randint(bound + 1, (), generator=generator))


def coin(generator: Generator) -> bool:
    return bool(integer(1, generator))


def random_resized_crop(
    image: Image.Image, size: int, generator: Generator, resample: Image.Resampling
) -> Image.Image:
    """8 to 100 % of the area, sides 3:4 to 4:3, scaled to a square (Szegedy et al., 2015)."""
    width, height = image.size
    for _ in range(10):
        area = uniform(0.08, 1, generator) * width * height
        ratio = math.exp(uniform(math.log(3 / 4), math.log(4 / 3), generator))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = integer(width - w, generator), integer(height - h, generator)
            crop = image.crop((left, top, left + w, top + h))
            return crop.resize((size, size), resample)
    # No such part fits into an image this narrow: its middle will do.
    return centre_crop(shorter_side(image, size, resample), size)


def shorter_side(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """The shorter side becomes ``size``, the sides' ratio stays."""
    scale = size / min(image.size)
    width, height = (max(size, int(side * scale)) for side in image.size)
    return image.resize((width, height), resample)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    left, top = ((side - size) // 2 for side in image.size)
    return image.crop((left, top, left + size, top + size))


@dataclass(frozen=True)
class ImageFolder:
    """``folder/<class>/<image>``, as ImageNet is kept; classes are numbered by their names' order.

    Training images are cropped at random to ``size`` and flipped; for evaluation the shorter side
    becomes 8/7 of ``size`` before its middle is cut out.

    Raises:
        FileNotFoundError: no images in ``folder``'s folders.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    size: int = 224
    resample: Image.Resampling = BILINEAR

    @classmethod
    def of(
        cls, folder: Path, size: int = 224, resample: Image.Resampling = BILINEAR
    ) -> ImageFolder:
        classes = sorted(path for path in folder.glob("*") if path.is_dir())
        found = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted(name.rglob("*"))
            if path.suffix.lower() in EXTENSIONS
        ]
        if not found:
            raise FileNotFoundError(
                f"--data: expected images in {folder}/<class>/, found none; give the folder that "
                "holds train/ and val/"
            )
        paths, labels = zip(*found, strict=True)
        return cls(paths, labels, size, resample)

    def __len__(self) -> int:
        return len(self.paths)

    def sample(self, index: int, generator: Generator | None) -> Sample:
        image, label = read(self.paths[index]), torch.tensor(self.labels[index])
        if generator is None:
            image = shorter_side(image, self.size * 8 // 7, self.resample)
            return to_tensor(centre_crop(image, self.size)), label
        image = random_resized_crop(image, self.size, generator, self.resample)
        pixels = to_tensor(image)
        return pixels.flip(-1) if coin(generator) else pixels, label
