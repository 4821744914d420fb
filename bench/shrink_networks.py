"""Networks of full size to shrink: from transformers where it has them, else as published."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resnet18() -> nn.Module:
    return _resnet(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")


def resnet50() -> nn.Module:
    return _resnet()


def _resnet(**sizes: object) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(num_labels=1000, **sizes))


def mobilenet_v2() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1000))


def vit_b16(image: int = 112) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(num_labels=1000, image_size=image))


def vgg16_bn() -> nn.Module:
    """Simonyan and Zisserman 2014, configuration D, with batch norms."""
    layers: list[nn.Module] = []
    channels = 3
    for stage in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
        for width in stage:
            layers += [nn.Conv2d(channels, width, 3, padding=1), *_norm_relu(width)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()]
    end = [nn.Dropout(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *head, *end)


def _norm_relu(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


class _DenseLayer(nn.Sequential):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__(
            *_norm_relu(channels), nn.Conv2d(channels, 4 * growth, 1, bias=False),
            *_norm_relu(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, super().forward(x)], 1)


def densenet121() -> nn.Module:
    """Huang et al. 2017, DenseNet-BC with growth 32."""
    growth, channels = 32, 64
    layers: list[nn.Module] = [
        nn.Conv2d(3, channels, 7, 2, 3, bias=False), *_norm_relu(channels), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    for depth in (6, 12, 24, 16):
        if channels > 64:
            half = channels // 2
            layers += [*_norm_relu(channels), nn.Conv2d(channels, half, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            channels = half
        for _ in range(depth):
            layers.append(_DenseLayer(channels, growth))
            channels += growth
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    return nn.Sequential(*layers, *_norm_relu(channels), *end)


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), *_norm_relu(outputs),
        nn.Conv2d(outputs, outputs, 3, padding=1), *_norm_relu(outputs),
    )  # fmt: skip


class UNet(nn.Module):
    """Ronneberger et al. 2015, padded and with batch norms."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512, 1024)) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.first = _twice(3, widths[0])
        self.down = nn.ModuleList(_twice(a, b) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.join = nn.ModuleList(_twice(2 * a, a) for a, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.first(x)]
        for down in self.down:
            skips.append(down(F.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)
