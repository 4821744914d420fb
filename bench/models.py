"""The whole networks that bench.train measures, with random weights and random inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.resnet import resnet32


@dataclass(frozen=True)
class Network:
    """A network and its batch.

    ``make()`` gives a fresh one, ``loss(model, batch)`` its loss, ``floor`` the share of its own
    ceiling that the whole backward is to reach at 10 % active. ``dtype`` is its parameters',
    ``autocast`` that of the products, where it differs.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[], Tensor]
    loss: Callable[[Callable[..., Any], Tensor], Tensor]
    layouts: tuple[str, ...]
    floor: float
    quick: bool = False
    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None

    @property
    def precision(self) -> str:
        if self.autocast:
            return f"{str(self.autocast).removeprefix('torch.')} autocast"
        return str(self.dtype).removeprefix("torch.")

    def build(self, device: str, layout: str) -> tuple[nn.Module, Tensor]:
        """A fresh network in training and a batch, both in place."""
        model, batch = self.make().to(device, self.dtype).train(), self.batch().to(device)
        if batch.is_floating_point() and not self.autocast:
            batch = batch.to(self.dtype)
        if layout == "channels_last":
            model = model.to(memory_format=torch.channels_last)
            batch = batch.to(memory_format=torch.channels_last)
        return model, batch

    def training_loss(self, model: Callable[..., Any], batch: Tensor) -> Tensor:
        """The loss, in the network's own precision."""
        if self.autocast is None:
            return self.loss(model, batch)
        with torch.autocast(batch.device.type, self.autocast):
            return self.loss(model, batch)


IMAGES = ("contiguous", "channels_last")


def image_loss(model: Callable[..., Any], x: Tensor) -> Tensor:
    output = model(x)
    logits = output if isinstance(output, Tensor) else output.logits
    return F.cross_entropy(logits.float(), torch.arange(len(x), device=x.device) % logits.shape[1])


def text_loss(model: Callable[..., Any], tokens: Tensor) -> Tensor:
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
            "ResNet-32", resnet32, lambda: torch.randn(128, 3, 32, 32), image_loss, IMAGES, 0.8
        ),
        Network(
            "ResNet-50", _resnet50, lambda: torch.randn(8, 3, 112, 112), image_loss, IMAGES, 0.9
        ),
        Network(
            "MobileNetV2", _mobilenet_v2, lambda: torch.randn(16, 3, 96, 96), image_loss, IMAGES,
            0.8, quick=True,
        ),
        Network(
            "ViT", _vit, lambda: torch.randn(16, 3, 112, 112), image_loss, ("tokens",), 0.9,
            quick=True,
        ),
        Network(
            "GPT-2", _gpt2, lambda: torch.randint(0, 2000, (4, 256)), text_loss, ("tokens",), 0.9
        ),
    )
}  # fmt: skip
