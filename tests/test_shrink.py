"""Removing zero neurons: the same output, smaller layers, and a word on what stayed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import neq_kernels as neq
from neq_kernels.pruning import shrink
from tests.shrink_nets import IMAGE, NETS, difference, layers_of, make, outputs, prune, zero

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def x():
    return torch.randn(2, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("hooks", [True, False])
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("name", NETS)
def test_same_output_with_half_of_the_neurons_zero(name, multiple, hooks, x, hooks_pay):
    model = prune(make(name))
    types = [type(m) for m in model.modules()]
    keys = set(model.state_dict())
    wanted = outputs(model, x)
    before = {n: m.weight.shape for n, m in layers_of(model).items()}
    report = shrink(model, x, multiple=multiple, hooks=hooks)
    assert difference(outputs(model, x), wanted) < 1e-5
    assert hooks or not report.hooks
    assert report.removed > 0
    assert [type(m) for m in model.modules()] == types
    assert set(model.state_dict()) >= keys
    for change in report.layers:
        neurons = change.neurons
        assert neurons[1] % multiple == 0 or neurons[0] == neurons[1]
        dim = int(isinstance(layers_of(model)[change.name], nn.ConvTranspose2d))
        assert layers_of(model)[change.name].weight.shape[dim] == neurons[1]
        assert before[change.name][dim] == neurons[0]
    assert report.parameters[1] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("hooks", [True, False])
@pytest.mark.parametrize(
    "name", ["VGG", "DenseNet", "U-Net", "separable", "ResNet-18", "MobileNetV2"]
)
def test_equal_in_double_and_at_another_size(name, hooks, x, hooks_pay):
    """Nothing approximate, and nothing that holds at one resolution only."""
    model = prune(make(name)).double()
    other = torch.randn(3, 3, 48, 40, dtype=torch.float64)
    wanted = outputs(model, other)
    shrink(model, x.double(), hooks=hooks)
    assert difference(outputs(model, other), wanted) < 1e-12


@pytest.mark.parametrize("hooks", [True, False])
@pytest.mark.parametrize("name", ["VGG", "ResNet-18", "ResNet-50", "MobileNetV2 padded", "ViT"])
def test_shrinking_again(name, hooks, x, hooks_pay):
    """What can go has gone; what is pruned later goes then, from the same hooks."""
    model = prune(make(name))
    first = shrink(model, x, hooks=hooks)
    assert shrink(model, x, hooks=hooks).removed == 0
    wanted = outputs(prune(model, seed=2), x)
    hooked = {n for n, m in model.named_modules() if m._forward_hooks}
    second = shrink(model, x, hooks=hooks)
    assert difference(outputs(model, x), wanted) < 1e-5
    assert second.removed > 0
    assert {c.name for c in first.layers} == {c.name for c in second.layers}
    assert hooked == {n for names in first.hooks.values() for n in names}
    assert all(len(m._forward_hooks) <= 2 for m in model.modules())


@pytest.mark.parametrize("hooks", [True, False])
def test_a_chain_loses_all_its_zero_neurons(hooks):
    """VGG's constants meet padding: without a hook one channel per convolution carries them."""
    model = prune(make("VGG"))
    report = shrink(model, torch.randn(1, 3, IMAGE, IMAGE), hooks=hooks)
    by_name = {c.name: c for c in report.layers}
    assert by_name["0"].neurons == (16, 8 if hooks else 9)
    carriers = by_name["0"].kept["stands for all constants that meet the padding of 4"]
    assert carriers == (not hooks)
    assert by_name["4"].neurons == (24, 12)
    assert by_name["10"].inputs == (24 * 16, 12 * 16)
    assert by_name["10"].neurons == (32, 16)


def test_no_carrier_where_constants_are_zero(x):
    """Nor a hook."""
    model = prune(make("VGG"))
    (
        nn.init.zeros_(model[0].bias),
        nn.init.zeros_(model[1].running_mean),
        nn.init.zeros_(model[1].bias),
    )
    wanted = outputs(model, x)
    report = shrink(model, x)
    assert report.layers[0].neurons == (16, 8)
    assert not report.hooks
    assert difference(outputs(model, x), wanted) < 1e-5


def test_sums_that_cancel_are_not_zero(x):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        model[0].weight[3] = 0
        model[0].weight[3, :, 0, 0], model[0].weight[3, :, 0, 1] = 1, -1
    report = shrink(model, x)
    assert report.removed == 0
    assert report.layers[0].zero == 0


def test_a_stream_keeps_what_one_of_its_writers_writes(x):
    """A channel of a residual sum goes when it is zero in all branches."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.branch = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.head(F.relu(x + self.branch(x)))

    torch.manual_seed(0)
    model = Block()
    zero(model.stem, [0, 1, 2])
    zero(model.branch, [1, 2, 3])
    wanted = outputs(model, x)
    report = shrink(model, x)
    assert [c.neurons[1] for c in report.layers] == [6, 6, 4]
    assert difference(outputs(model, x), wanted) < 1e-5
    assert report.kept.total() == 2
    assert "live channels" in str(report)


@pytest.mark.parametrize("name", ["ViT", "ViT eager"])
def test_whole_heads_go(name, x):
    model = make(name)
    attention = model.vit.layers[0].attention
    zero(attention.v_proj, range(4, 8))
    zero(attention.v_proj, [12])
    wanted = outputs(model, x)
    shrink(model, x)
    assert difference(outputs(model, x), wanted) < 1e-5
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert layer.weight.shape == (12, 16)
    assert attention.o_proj.weight.shape == (16, 12)


def test_depthwise_goes_with_its_neighbours(x):
    model = make("MobileNetV2")
    block = model.mobilenet_v2.layer[1]
    zero(block.conv_3x3.convolution, [0, 5])
    wanted = outputs(model, x)
    shrink(model, x)
    size = block.conv_3x3.convolution.groups
    assert difference(outputs(model, x), wanted) < 1e-5
    assert block.expand_1x1.convolution.out_channels == size
    assert block.reduce_1x1.convolution.in_channels == size
    assert size == make("MobileNetV2").mobilenet_v2.layer[1].conv_3x3.convolution.groups - 2


def test_constants_go_through_layers_without_bias(x):
    """Before a norm into its running mean, else into a bias of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8),
        nn.Conv2d(8, 4, 1, bias=False),
    ).eval()  # fmt: skip
    zero(model[0], [1, 4])
    zero(model[1], [2])
    nn.init.constant_(model[2].running_mean, 0.5)
    wanted = outputs(model, x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    shrink(model, x, optimizer=optimizer)
    assert difference(outputs(model, x), wanted) < 1e-5
    assert model[1].bias is None
    assert model[3].bias.shape == (4,)
    assert any(p is model[3].bias for p in optimizer.param_groups[0]["params"])


def test_a_gamma_of_zero_is_a_constant(x):
    """Whatever the convolution before it computes."""
    model = make("VGG")
    with torch.no_grad():
        model[1].weight[5], model[1].bias[5] = 0, -1  # the ReLU makes it zero: no carrier
    wanted = outputs(model, x)
    shrink(model, x)
    assert model[0].out_channels == 15
    assert difference(outputs(model, x), wanted) < 1e-5


def test_a_carrier_goes_through_padding_of_its_own(x):
    """As a channel with a border of zeros."""

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            return self.b(F.pad(torch.sigmoid(self.a(x)), (0, 1, 2, 1)))

    torch.manual_seed(0)
    model = Padded()
    zero(model.a, [0, 3, 4])
    wanted = outputs(model, x)
    shrink(model, x)
    assert model.a.out_channels == 6
    assert difference(outputs(model, x), wanted) < 1e-5


def test_says_why_nothing_went(x):
    assert "no neuron has all its weights zero" in str(shrink(make("VGG"), x))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1))
    zero(model[0], [0])
    report = shrink(model, x)
    assert report.removed == 0
    assert report.kept["native_group_norm in 1 norms over them"] == 1


def test_training_goes_on(x):
    model = prune(make("ResNet-18"))
    shrink(model, x)
    assert not model.training
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = copy.deepcopy(model.state_dict())
    model(x, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    assert all(p.grad.shape == p.shape for p in model.parameters() if p.grad is not None)
    model.load_state_dict(before)
    assert model.training


def test_converted_layers_stay_converted(x):
    model = prune(make("VGG"))
    wanted = outputs(model, x)
    neq.convert(model)
    alive = model[4].weight.flatten(1).any(1)
    frozen = alive.nonzero().flatten()[:2]
    neq.set_active(model, {"4": [i for i in range(24) if i not in frozen.tolist()]})
    shrink(model, x)
    assert difference(outputs(model, x), wanted) < 1e-5
    kept = model[4].size
    assert kept == model[4].weight.shape[0] == 12
    assert model[4].active.frozen.tolist() == [0, 1]
    model(x).sum().backward()
    assert not model[4].weight.grad[:2].any()
    assert model[4].weight.grad[2:].flatten(1).any(1).any()
