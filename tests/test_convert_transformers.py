"""transformers' models, built from their configs: one training step each with random sets."""

import copy
import random

import pytest
import torch
from torch import nn

import neq_kernels as neq
from neq_kernels.convert import converted_layers, skipped

transformers = pytest.importorskip("transformers")


def build(name):
    torch.manual_seed(0)
    image = {"image_size": 32, "num_labels": 3}
    text = {"num_labels": 3, "vocab_size": 50, "pad_token_id": 0}
    config, kind = {
        "ViT": lambda: (
            transformers.ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                   intermediate_size=32, patch_size=8, **image),
            transformers.ViTForImageClassification,
        ),
        "ResNet": lambda: (
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
                                      layer_type="basic", num_labels=3),
            transformers.ResNetForImageClassification,
        ),
        "MobileNetV2": lambda: (
            transformers.MobileNetV2Config(depth_multiplier=0.1, min_depth=4, depth_divisible_by=4,
                                           **image),
            transformers.MobileNetV2ForImageClassification,
        ),
        "Swin": lambda: (
            transformers.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4,
                                    patch_size=4, **image),
            transformers.SwinForImageClassification,
        ),
        "BERT": lambda: (
            transformers.BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                    intermediate_size=32, **text),
            transformers.BertForSequenceClassification,
        ),
        "GPT-2": lambda: (
            transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16,
                                    bos_token_id=0, eos_token_id=0),
            transformers.GPT2LMHeadModel,
        ),
    }[name]()  # fmt: skip
    model = kind(config)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def make_batch(name):
    generator = torch.Generator().manual_seed(1)
    if name in ("BERT", "GPT-2"):
        ids = torch.randint(1, 50, (2, 8), generator=generator)
        return {"input_ids": ids, "labels": ids if name == "GPT-2" else torch.tensor([0, 2])}
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    return {"pixel_values": pixels, "labels": torch.tensor([0, 2])}


SKIPPED = {
    "ViT": {"vit.embeddings"},
    "ResNet": set(),
    "MobileNetV2": set(),
    "Swin": {
        f"swin.encoder.layers.{i}.blocks.0.attention.relative_position_bias" for i in range(2)
    },
    "BERT": {f"bert.embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")},
    "GPT-2": {"transformer.wte", "transformer.wpe", "lm_head"},
}


@pytest.mark.parametrize("name", SKIPPED)
def test_one_step_with_random_sets(name):
    """One step: active rows as in dense training, frozen rows zero, and nothing else left out."""
    plain = build(name)
    model = neq.convert(copy.deepcopy(plain))
    batch, draw = make_batch(name), random.Random(0)
    layers = converted_layers(model)
    neq.set_active(
        model,
        {n: draw.sample(range(m.size), draw.randrange(m.size + 1)) for n, m in layers.items()},
    )
    torch.manual_seed(1)
    loss = model(**batch).loss
    torch.manual_seed(1)
    expected = plain(**batch).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    dense = dict(plain.named_parameters())
    of_neurons = {
        f"{n}.{own}": (m.active, dim)
        for n, m in layers.items()
        for own, _, dim in m.neuron_parameters()
    }
    for full_name, parameter in model.named_parameters():
        wanted = dense[full_name].grad
        if full_name in of_neurons:
            active, dim = of_neurons[full_name]
            wanted = wanted.index_fill(dim, active.frozen, 0)
        if parameter.grad is None:
            assert wanted is None or not wanted.any(), full_name
        else:
            torch.testing.assert_close(
                parameter.grad, wanted, rtol=1e-3, atol=1e-5, msg=lambda m, n=full_name: f"{n}: {m}"
            )
    assert set(skipped(model)) == SKIPPED[name]
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    neq.revert(model)
    assert {type(m) for m in model.modules()} == {type(m) for m in plain.modules()}
