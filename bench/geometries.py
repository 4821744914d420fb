"""The layers of whole networks at the batch sizes of GPUs, each geometry of a network once.

Written out, so that neither torchvision nor transformers is needed to measure them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from bench.cases import Case


class Convolution(NamedTuple):
    """A square one with padding of half its kernel; ``side`` is the input's."""

    images: int
    inputs: int
    side: int
    outputs: int
    kernel: int
    stride: int
    groups: int = 1


class Product(NamedTuple):
    """A linear layer; "columns" where its weight is [in, out], as GPT-2's are."""

    tokens: int
    inputs: int
    outputs: int
    kind: str = "linear"


def resnet50(images: int = 256) -> dict[str, Convolution]:
    layers = {"stem": Convolution(images, 3, 224, 64, 7, 2)}
    wide, side = 64, 56
    for stage in range(4):
        middle = 64 << stage
        stride = 2 if stage else 1
        name, small = f"stage {stage + 1}", side // stride
        layers |= {
            f"{name} first reduce": Convolution(images, wide, side, middle, 1, 1),
            f"{name} first middle": Convolution(images, middle, side, middle, 3, stride),
            f"{name} shortcut": Convolution(images, wide, side, 4 * middle, 1, stride),
            f"{name} expand": Convolution(images, middle, small, 4 * middle, 1, 1),
            f"{name} reduce": Convolution(images, 4 * middle, small, middle, 1, 1),
            f"{name} middle": Convolution(images, middle, small, middle, 3, 1),
        }
        wide, side = 4 * middle, small
    return layers


def mobilenet_v2(images: int = 256) -> dict[str, Convolution]:
    layers = {"stem": Convolution(images, 3, 224, 32, 3, 2)}
    narrow, side = 32, 112
    # Expansion, channels, blocks and stride of the first block of each stage.
    stages = [
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]  # fmt: skip
    for stage, (times, channels, blocks, stride) in enumerate(stages, 1):
        for block in range(min(blocks, 2)):
            name = f"stage {stage}{' later' if block else ''}"
            hidden, step = narrow * times, 1 if block else stride
            if times > 1:
                layers[f"{name} expand"] = Convolution(images, narrow, side, hidden, 1, 1)
            layers[f"{name} depthwise"] = Convolution(images, hidden, side, hidden, 3, step, hidden)
            side //= step
            layers[f"{name} project"] = Convolution(images, hidden, side, channels, 1, 1)
            narrow = channels
    return layers | {"last": Convolution(images, 320, side, 1280, 1, 1)}


def resnet32(images: int = 128) -> dict[str, Convolution]:
    layers = {"stem": Convolution(images, 3, 32, 16, 3, 1)}
    for stage in range(3):
        channels, side = 16 << stage, 32 >> stage
        if stage:
            layers[f"stage {stage + 1} down"] = Convolution(
                images, channels // 2, 2 * side, channels, 3, 2
            )
        layers[f"stage {stage + 1}"] = Convolution(images, channels, side, channels, 3, 1)
    return layers


def vit_b(images: int = 128) -> dict[str, Product]:
    tokens = images * 197
    return {
        "MLP in": Product(tokens, 768, 3072),
        "MLP out": Product(tokens, 3072, 768),
        "projection": Product(tokens, 768, 768),
        "qkv": Product(tokens, 768, 2304),
    }


def gpt2_medium(tokens: int = 8 * 1024) -> dict[str, Product]:
    return {
        "MLP in": Product(tokens, 1024, 4096, "columns"),
        "MLP out": Product(tokens, 4096, 1024, "columns"),
        "attention": Product(tokens, 1024, 3072, "columns"),
        "projection": Product(tokens, 1024, 1024, "columns"),
    }


def _convolutions(
    network: str, layers: dict[str, Convolution], dtype: torch.dtype, layout: bool,
    parameters: torch.dtype | None = None,
) -> list[Case]:  # fmt: skip
    seen, cases = set(), []
    for name, layer in layers.items():
        if layer in seen:
            continue
        seen.add(layer)
        images, inputs, side, outputs, kernel, stride, groups = layer
        arguments = {
            "inputs": inputs, "outputs": outputs, "kernel": kernel, "stride": stride,
            "groups": groups,
        }  # fmt: skip
        shape = (images, inputs, side, side)
        cases.append(
            Case(f"{network} {name}", "conv", shape, arguments, network, dtype, layout,
                 parameters=parameters)
        )  # fmt: skip
    return cases


def _products(network: str, layers: dict[str, Product], dtype: torch.dtype) -> list[Case]:
    return [
        Case(f"{network} {name}", layer.kind, (layer.tokens, layer.inputs),
             {"inputs": layer.inputs, "outputs": layer.outputs}, network, dtype)
        for name, layer in layers.items()
    ]  # fmt: skip


def cases() -> dict[str, list[Case]]:
    """Every layer of every network, as the networks are trained on GPUs."""
    full, half = torch.float32, torch.bfloat16
    return {
        "ResNet-50": _convolutions("ResNet-50", resnet50(), half, True, full),
        "ViT-B": _products("ViT-B", vit_b(), half),
        "GPT-2 medium": _products("GPT-2 medium", gpt2_medium(), half),
        "ResNet-32": [
            *_convolutions("ResNet-32", resnet32(), full, False),
            *_convolutions("ResNet-32", resnet32(), half, True, full),
        ],
        "MobileNetV2": _convolutions("MobileNetV2", mobilenet_v2(), half, True, full),
    }
