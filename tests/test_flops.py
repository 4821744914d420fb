"""neq.flops against published totals, torch's own counter, and the formulas by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import neq_kernels as neq
from examples.resnet import resnet32

IMAGE = torch.randn(1, 3, 32, 32)


def random_sets(model, keep):
    """What `Random(keep)` freezes: counts are all that matters here."""
    return {
        name: neq.ActiveSet.from_index(
            torch.arange(int((1 - keep) * active.size), active.size), active.size
        )
        for name, active in neq.get_active(model).items()
        if name != "fc"
    }


def frozen_whole(model, *names):
    return {name: neq.ActiveSet.empty(neq.get_active(model)[name].size) for name in names}


def test_resnet32_as_published():
    counted = neq.flops(neq.convert(resnet32()), IMAGE)
    assert counted.neurons == 2282
    assert round(counted.paper.dense / 1e6, 2) == 138.94
    assert round(counted.wgrad.dense / 1e6, 2) == 137.73  # without the norms
    assert counted.paper.sparse == counted.paper.dense
    assert counted.frozen_share == 0


@pytest.mark.parametrize(
    ("keep", "percent", "mega"),
    [
        (0.8, 18.6678, 112.99),
        (0.6084, 38.2121, 86.34),
        (0.5, 49.7809, 69.75),
        (0.2, 78.1770, 31.64),
    ],
)
def test_random_as_published(keep, percent, mega):
    model = neq.convert(resnet32())
    sets = random_sets(model, keep)
    once = neq.flops(model, IMAGE, [sets])
    assert round(100 * once.frozen_share, 4) == percent
    training = neq.flops(model, IMAGE, [{}] + 249 * [sets])
    assert training.paper.sparse / 1e6 == pytest.approx(mega, abs=0.01)
    assert training.paper.dense == once.paper.dense


@pytest.mark.parametrize(("name", "giga"), [("resnet18", 3.638), ("swin_b", 30.28)])
def test_transformers_models_as_published(name, giga):
    transformers = pytest.importorskip("transformers")
    if name == "resnet18":
        config = transformers.ResNetConfig(
            layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512],
            num_labels=1000,
        )  # fmt: skip
        model = transformers.ResNetForImageClassification(config)
    else:
        config = transformers.SwinConfig(
            embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], num_labels=1000
        )
        model = transformers.SwinForImageClassification(config)
    counted = neq.flops(model, torch.randn(1, 3, 224, 224))
    assert counted.paper.dense / 1e9 == pytest.approx(giga, abs=6e-3)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out((q @ k.transpose(1, 2)).softmax(-1) @ v)


def test_dense_backward_is_what_torch_counts():
    model = nn.Sequential(nn.Linear(4, 8), Attention(), nn.LayerNorm(8), nn.Linear(8, 2))
    x = torch.randn(3, 5, 4)
    with FlopCounterMode(display=False) as counter:
        loss = model(x).sum()
        forward = counter.get_total_flops()
        loss.backward()
    counted = neq.flops(neq.convert(model), x)
    assert counted.forward == forward / 3
    assert counted.backward.dense == (counter.get_total_flops() - forward) / 3
    rows = 5 * (4 * 8 + 8 * 24 + 8 * 8 + 8 * 2)
    assert counted.wgrad.dense == 2 * rows
    assert counted.paper.dense == 2 * rows + 2 * 2 * 5 * 8


def chain():
    return neq.convert(nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3))))


def test_a_frozen_prefix_needs_no_input_gradient():
    model, x, one = chain(), torch.randn(1, 4), 2 * 16
    assert neq.flops(model, x).backward.dense == (3 + 2) * one
    # A frozen layer in the middle saves its wgrad alone, at the front also the dgrad above it.
    assert neq.flops(model, x, [frozen_whole(model, "1")]).backward.sparse == (2 + 2) * one
    assert neq.flops(model, x, [frozen_whole(model, "0")]).backward.sparse == (2 + 1) * one
    assert neq.flops(model, x, [frozen_whole(model, "0", "1")]).backward.sparse == one
    assert neq.flops(model, x, [frozen_whole(model, "0", "1", "2")]).backward.sparse == 0


def test_the_real_backward_runs_what_was_counted():
    model, x = chain(), torch.randn(1, 4)
    for names in ((), ("0",), ("1",), ("0", "1"), ("0", "2")):
        sets = frozen_whole(model, *names)
        neq.set_active(model, {name: sets.get(name) for name in ("0", "1", "2")})
        loss = model(x).sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        assert neq.flops(model, x).backward.sparse == counter.get_total_flops()


def test_propagate_active_shrinks_both_gradients_and_cuts():
    model, x, one = chain(), torch.randn(1, 4), 2 * 16
    for layer in model:
        layer.propagate = "active"
    half = {"1": neq.ActiveSet.from_index([0, 1], 4)}
    assert neq.flops(model, x, [half]).backward.sparse == (1 + 0.5 + 0.5 + 2) * one
    # Nothing passes a layer that is frozen whole, so layer 0 gets no gradient.
    assert neq.flops(model, x, [frozen_whole(model, "1")]).backward.sparse == (1 + 1) * one


def test_shared_calls_unconverted_layers_and_requires_grad():
    layer = nn.Conv2d(2, 2, 3, padding=1, groups=2)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.ConvTranspose2d(2, 3, 2, stride=2))
    model[0].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    counted = neq.flops(model, torch.randn(2, 2, 4, 4))
    conv, transposed = 2 * 16 * 9, 2 * 16 * 3 * 4
    assert counted.neurons == 5
    assert counted.paper.dense == 2 * (2 * conv + transposed)
    assert counted.wgrad.dense == 2 * transposed  # nothing below it trains: no dgrad either
    assert counted.backward.dense == 2 * transposed


def test_history_is_averaged_and_missing_layers_are_active():
    model, x, one = chain(), torch.randn(2, 4), 2 * 16
    history = [{}, {"2": neq.ActiveSet.from_index([3], 4)}]
    counted = neq.flops(model, x, history, probe_samples=50)
    assert counted.wgrad.sparse == (3 + 2.25) / 2 * one
    assert counted.frozen_share == 1.5 / 12
    assert counted.probe == 50 * 3 * one
    assert "one measurement of the probe: 4.8 k" in str(counted)


def test_leaves_no_trace():
    model = neq.convert(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    )
    neq.set_active(model, {"0": [1, 2]})
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    assert neq.flops(model, x).frozen_share == 2 / 10
    assert torch.equal(random, torch.get_rng_state())
    assert model.training
    assert neq.get_active(model)["0"].index.tolist() == [1, 2]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_says_what_is_wrong():
    model, x = chain(), torch.randn(1, 4)
    with pytest.raises(
        TypeError, match=r"example_input: expected a tensor \[samples, ...\].*got int"
    ):
        neq.flops(model, 3)
    with pytest.raises(ValueError, match=r"history: .*at least one epoch"):
        neq.flops(model, x, [])
    with pytest.raises(ValueError, match="'7' with 4 neurons; there is no such layer"):
        neq.flops(model, x, [{"7": neq.ActiveSet.full(4)}])
    with pytest.raises(ValueError, match="'1' with 5 neurons"):
        neq.flops(model, x, [{"1": neq.ActiveSet.full(5)}])
    with pytest.raises(RuntimeError, match="depends on parameters"):
        neq.flops(nn.Sequential(nn.Linear(4, 2).requires_grad_(False)), x)
