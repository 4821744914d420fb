"""The whole networks that bench.train measures, with random weights and random inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.resnet import resnet32


@dataclass(frozen=True)
class Network:
    """A network and its batch.

    ``make()`` gives a fresh one, ``loss(model, batch)`` its loss, ``floor`` the share of its own
    ceiling that the whole backward is to reach at 10 % active.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[], Tensor]
    loss: Callable[[nn.Module, Tensor], Tensor]
    layouts: tuple[str, ...]
    floor: float
    quick: bool = False


IMAGES = ("contiguous", "channels_last")


def _image_loss(model: nn.Module, x: Tensor) -> Tensor:
    output = model(x)
    logits = output if isinstance(output, Tensor) else output.logits
    return F.cross_entropy(logits.float(), torch.arange(len(x), device=x.device) % logits.shape[1])


def _text_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, labels=tokens).loss


def _resnet50() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(num_labels=1000))


def _mobilenet_v2() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(image_size=96, num_labels=1000, classifier_dropout_prob=0.0)
    return MobileNetV2ForImageClassification(config)


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536,
        image_size=112, patch_size=16, num_labels=1000,
    )  # fmt: skip
    return ViTForImageClassification(config)


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=2000, n_positions=256, n_embd=256, n_layer=4, n_head=4, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


NETWORKS = {
    network.name: network
    for network in (
        Network(
            "ResNet-32", resnet32, lambda: torch.randn(128, 3, 32, 32), _image_loss, IMAGES, 0.8
        ),
        Network(
            "ResNet-50", _resnet50, lambda: torch.randn(8, 3, 112, 112), _image_loss, IMAGES, 0.9
        ),
        Network(
            "MobileNetV2", _mobilenet_v2, lambda: torch.randn(16, 3, 96, 96), _image_loss, IMAGES,
            0.8, quick=True,
        ),
        Network(
            "ViT", _vit, lambda: torch.randn(16, 3, 112, 112), _image_loss, ("tokens",), 0.9,
            quick=True,
        ),
        Network(
            "GPT-2", _gpt2, lambda: torch.randint(0, 2000, (4, 256)), _text_loss, ("tokens",), 0.9
        ),
    )
}  # fmt: skip
