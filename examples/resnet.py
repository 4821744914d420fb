"""The CIFAR ResNet-32 of He et al. (2016, section 4.2), plain torch modules only.

Its shortcuts are the paper's option A: where the shape changes, every second pixel of the input
with zero channels appended. They hold no parameters, so that the network is 1136 convolution
channels, 1136 batch-norm channels and 10 outputs: the 2282 neurons NEq counts.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Shortcut(nn.Module):
    """Option A: ``[N, C, H, W]`` to ``[N, channels, H/stride, W/stride]`` without parameters."""

    def __init__(self, added_channels: int, stride: int) -> None:
        super().__init__()
        self.padding = (added_channels // 2, added_channels - added_channels // 2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


class Block(nn.Module):
    """Two 3x3 convolutions and the shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same_shape = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same_shape else Shortcut(outputs - inputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of ``blocks`` blocks, 16, 32 and 64 channels wide: 6 * blocks + 2 layers."""

    def __init__(self, blocks: int, classes: int = 10, inputs: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16, stride=1)
        self.layer2 = _stage(blocks, 16, 32, stride=2)
        self.layer3 = _stage(blocks, 32, 64, stride=2)
        self.fc = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[N, classes]`` of images ``[N, inputs, H, W]``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    first = Block(inputs, outputs, stride)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def resnet32(classes: int = 10, inputs: int = 3) -> ResNet:
    """ResNet-32 for ``inputs``-channel images, CIFAR's three by default."""
    return ResNet(5, classes, inputs)
