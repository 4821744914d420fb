"""What shrink refuses, what it leaves whole, and that it then changes nothing."""

import copy

import pytest
import torch
from torch import nn

from neq_kernels.pruning import shrink
from tests.shrink_nets import difference, make, outputs, prune, zero

pytestmark = pytest.mark.usefixtures("one_thread")


def state(model):
    return {n: t.clone() for n, t in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_net_that_is_cut():
    model = make("VGG")
    zero(model[4], range(24))
    before = state(model)
    with pytest.raises(ValueError, match=r"4 \(24 neurons\): the net is cut"):
        shrink(model, torch.randn(1, 3, 32, 32))
    assert unchanged(model, before)


def test_a_branch_pruned_whole_is_no_cut():
    model, x = make("ResNet-18"), torch.randn(2, 3, 32, 32)
    branch = model.resnet.encoder.stages[1].layers[1].layer
    zero(branch[1].convolution, range(24))
    wanted = outputs(model, x)
    shrink(model, x)
    assert difference(outputs(model, x), wanted) < 1e-5
    assert branch[0].convolution.out_channels == 1


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.a(x) if x.mean() > 0 else self.b(x)


class Telling(nn.Module):
    """The decision is taken in here, and acted upon outside."""

    def forward(self, x):
        return bool(x.mean() > 0)


class ActingUpon(nn.Module):
    def __init__(self):
        super().__init__()
        self.telling, self.a, self.b = Telling(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.a(x) if self.telling(x) else self.b(x)


class Listing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.conv(x) * max(x.mean((1, 2, 3)).tolist())


@pytest.mark.parametrize("kind", [Deciding, ActingUpon, Listing])
def test_a_module_that_decides_by_values_is_left_whole(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), kind(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1))
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.out_channels == 8:
            zero(module, [0, 1, 2])
    inputs = [torch.randn(2, 3, 5, 5) * 4 * s + s for s in (1, -1)]
    wanted = [outputs(model, x) for x in inputs]
    report = shrink(model, inputs[0])
    for x, y in zip(inputs, wanted, strict=True):
        assert difference(outputs(model, x), y) < 1e-5
    assert model[0].out_channels == 8
    assert model[2].out_channels == 5
    assert "decides by the values of a tensor" in report.opaque["1"]
    assert "1 decides by the values" in str(report)


def test_a_model_that_decides_itself_is_refused():
    with pytest.raises(ValueError, match="the model's own forward reads some"):
        shrink(Deciding(), torch.randn(1, 8, 4, 4))


def test_constants_may_be_read():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.a, self.b = (
                nn.Parameter(torch.ones(())),
                nn.Linear(4, 8),
                nn.Linear(8, 2),
            )

        def forward(self, x):
            return self.b(self.a(x)) * (2 if self.scale > 0 else 3)

    model = Scaled()
    zero(model.a, [0])
    assert shrink(model, torch.randn(3, 4)).removed == 1


def test_sizes_written_down_are_found_by_running():
    """Half of the channels, as a number: cutting them would break it, so they stay."""

    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Linear(4, 8), nn.Linear(4, 2)

        def forward(self, x):
            left, right = torch.split(self.a(x), [4, 4], 1)
            return self.c(left * right)

    torch.manual_seed(0)
    model, x = Written(), torch.randn(3, 4)
    zero(model.a, [0, 4])
    wanted = outputs(model, x)
    report = shrink(model, x)
    assert difference(outputs(model, x), wanted) < 1e-5
    assert model.a.weight.shape == (8, 4)
    assert "left whole" in str(report)


def test_everything_is_put_back_when_the_smaller_model_fails():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(x)) * self.a.weight.shape[0]

    model, x = Counting(), torch.randn(3, 4)
    zero(model.a, [0])
    model(x).sum().backward()
    before, gradient = state(model), model.a.weight.grad
    with pytest.raises(RuntimeError, match=r"differs by .*the model is as before"):
        shrink(model, x)
    assert unchanged(model, before)
    assert model.a.out_features == 8
    assert model.a.weight.grad is gradient


def test_views_changed_in_place_are_left_whole():
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.a(x)
            x[:, :4].mul_(2)
            return self.b(x)

    torch.manual_seed(0)
    model, x = Writing(), torch.randn(3, 4)
    zero(model.a, [0, 5])
    wanted = outputs(model, x)
    report = shrink(model, x)
    assert report.removed == 0
    assert "view of it was changed in place" in str(report)
    assert difference(outputs(model, x), wanted) < 1e-5


def test_weights_used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.c(torch.sigmoid(self.b(torch.tanh(self.b(torch.tanh(self.a(x)))))))

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(3, 4)
    zero(model.a, [0, 1])
    zero(model.b, [1, 2])
    wanted = outputs(model, x)
    shrink(model, x)
    assert model.b.weight.shape == (8, 8)  # its bias cannot take two different constants
    assert difference(outputs(model, x), wanted) < 1e-5


def test_a_transformer_layer_loses_neurons_of_its_mlp():
    torch.manual_seed(0)
    model, x = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), torch.randn(2, 5, 16)
    zero(model.linear1, range(10))
    zero(model.self_attn.out_proj, [3])
    wanted = outputs(model, x)
    report = shrink(model, x)
    assert difference(outputs(model, x), wanted) < 1e-5
    assert model.linear1.out_features == 22
    assert "nn.MultiheadAttention fixes its sizes" in str(report)


def test_training_flags_and_hooks_are_left_alone():
    model = prune(make("VGG")).train()
    model[1].eval()
    flags = [m.training for m in model.modules()]
    hooks = copy.copy(model[0]._forward_hooks)
    shrink(model, torch.randn(2, 3, 32, 32))
    assert [m.training for m in model.modules()] == flags
    assert model[0]._forward_hooks == hooks


@pytest.mark.parametrize("multiple", [0, -8, 1.5, True])
def test_wrong_multiple(multiple):
    with pytest.raises(ValueError, match="multiple: expected an integer"):
        shrink(make("VGG"), torch.randn(1, 3, 32, 32), multiple=multiple)


def test_wrong_model_and_input():
    with pytest.raises(TypeError, match="model: expected a torch"):
        shrink(3, torch.randn(1, 3))
    with pytest.raises(TypeError, match="example_input: expected a tensor"):
        shrink(make("VGG"), "x")
    with pytest.raises(TypeError, match="hooks: expected True or False"):
        shrink(make("VGG"), torch.randn(1, 3, 32, 32), hooks="few")
