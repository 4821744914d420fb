"""The networks as GPUs train them. All but ResNet-32 are transformers', with random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.models import Network, image_loss, text_loss
from examples.resnet import resnet32

LAST, TOKENS = ("channels_last",), ("tokens",)
HALF = torch.bfloat16


def _images(count: int, side: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(count, 3, side, side)


def _resnet50() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(num_labels=1000))


def _mobilenet_v2() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(num_labels=1000, classifier_dropout_prob=0.0)
    return MobileNetV2ForImageClassification(config)


def _vit_b() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(num_labels=1000))


def _gpt2_medium() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_embd=1024, n_layer=24, n_head=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def _tokens() -> Tensor:
    return torch.randint(50257, (8, 1024))


NETWORKS = {
    f"{network.name}, {network.precision}": network
    for network in (
        Network("ResNet-50", _resnet50, _images(256, 224), image_loss, LAST, 0.9, autocast=HALF),
        Network("ViT-B", _vit_b, _images(128, 224), image_loss, TOKENS, 0.9, dtype=HALF),
        Network("GPT-2 medium", _gpt2_medium, _tokens, text_loss, TOKENS, 0.9, dtype=HALF),
        Network("ResNet-32", resnet32, _images(128, 32), image_loss, LAST, 0.8),
        Network("ResNet-32", resnet32, _images(128, 32), image_loss, LAST, 0.8, autocast=HALF),
        Network(
            "MobileNetV2", _mobilenet_v2, _images(256, 224), image_loss, LAST, 0.8, autocast=HALF
        ),
    )
}  # fmt: skip
