"""Pruning masks follow a shrunk model, and so do the sets of converted layers."""

import pytest
import torch
from torch import nn

import neq_kernels as neq
from neq_kernels import pruning
from neq_kernels.pruning import shrink
from tests.shrink_nets import IMAGE, difference, layers_of, make, outputs, prune

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def x():
    return torch.randn(2, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(7))


def thinned(name="VGG"):
    """Neurons and single weights pruned, all of it declared."""
    model = prune(make(name))
    with torch.no_grad():
        for layer in layers_of(model).values():
            layer.weight[layer.weight.abs() < 0.3 * layer.weight.abs().mean()] = 0
            if layer.bias is not None:
                layer.bias[::3] = 0
    pruning.keep_zeros(model)
    return model


@pytest.mark.parametrize("hooks", [True, False])
@pytest.mark.parametrize("name", ["VGG", "separable", "U-Net", "ResNet-18", "MobileNetV2"])
def test_masks_are_cut_alike(name, hooks, x, hooks_pay):
    model = thinned(name)
    wanted = outputs(model, x)
    shrink(model, x, hooks=hooks)
    masks = pruning.get_masks(model)
    assert masks
    for key, mask in masks.items():
        parameter = model.get_parameter(key)
        assert mask.shape == parameter.shape
        assert not parameter[~mask].any()
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers_of(model).values())
    masked = sum(int((~m).sum()) for k, m in masks.items() if model.get_parameter(k).dim() > 1)
    assert masked == zeros > 0
    pruning.apply_masks(model)  # what took over constants is no zero any more
    assert difference(outputs(model, x), wanted) < 1e-5


def test_training_goes_on_with_what_watched_before(x):
    model = thinned()
    regulariser = pruning.LOBSTER(model, 1e-4)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    shrink(model, x, optimizer=optimizer)
    masks = pruning.get_masks(model)
    before = model[4].weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        regulariser.step()
    assert all(not model.get_parameter(key)[~mask].any() for key, mask in masks.items())
    assert not torch.equal(model[4].weight, before)


def test_nothing_is_declared_that_was_not(x):
    model = prune(make("VGG"))
    shrink(model, x, multiple=8)
    assert pruning.get_masks(model) == {}


@pytest.mark.parametrize("when", ["before", "after"])
def test_pruned_neurons_that_stay_are_frozen(when, x):
    """Rounded up to eight, layers keep some."""
    model = thinned()
    if when == "before":
        neq.convert(model)
    shrink(model, x, multiple=16)
    if when == "after":
        neq.convert(model)
    layer = model[4]
    alive = layer.weight.flatten(1).any(1)
    assert (len(alive), int(alive.sum())) == (16, 12)
    assert torch.equal(layer.active.mask(), alive)
    neq.set_active(model, {"4": range(8)})
    assert layer.active.index.tolist() == alive[:8].nonzero().flatten().tolist()
    neq.set_active(model, {"4": None})
    assert torch.equal(layer.active.mask(), alive)
    model.train()(x).sum().backward()
    assert not layer.weight.grad[~alive].any()


def test_sets_come_back_when_shrink_fails(x):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(x)) * self.a.weight.shape[0]

    model = Counting()
    with torch.no_grad():
        model.a.weight[:2] = 0
    pruning.keep_zeros(model)
    neq.convert(model)
    neq.set_active(model, {"a": [0, 3, 5]})
    masks = pruning.get_masks(model)
    with pytest.raises(RuntimeError, match="the model is as before"):
        shrink(model, torch.randn(3, 4))
    assert model.a.active.index.tolist() == [3, 5]
    assert model.a.chosen.index.tolist() == [0, 3, 5]
    assert all(torch.equal(mask, masks[key]) for key, mask in pruning.get_masks(model).items())


def test_masks_of_another_shape_are_refused_before_anything_changes(x):
    model = thinned()
    model[0].weight.data = model[0].weight.data[:15]
    before = model[4].weight.shape
    with pytest.raises(RuntimeError, match="as it was pruned, of shape"):
        shrink(model, x)
    assert model[4].weight.shape == before
