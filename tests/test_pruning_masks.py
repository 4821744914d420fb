"""Pruned parameters stay zero, pruned neurons are frozen for the kernels."""

import copy
import pickle

import pytest
import torch
from torch import nn

import neq_kernels as neq
from neq_kernels import pruning

pytestmark = pytest.mark.usefixtures("one_thread")


def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6),
        nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip


def prune_neurons(model):
    """Neurons 1 of the convolution and 0 and 5 of the hidden layer, gamma and beta 2."""
    with torch.no_grad():
        model[0].weight[1] = 0
        model[1].weight[2] = model[1].bias[2] = 0
        model[1].weight[3] = 0
        model[4].weight[[0, 5]] = 0
        model[4].weight[1, 3] = 0
    # Betas start at zero, and are to learn.
    model[1].bias.data[[0, 1, 3]] = 0.5


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(5, 1, 6, 6)).square().sum().backward()
    optimizer.step()


ACTIVE = {"0": [0, 2, 3], "1": [0, 1, 3], "4": [1, 2, 3, 4], "6": [0, 1, 2]}


def indices(model):
    return {name: active.index.tolist() for name, active in neq.get_active(model).items()}


@pytest.mark.parametrize("convert_first", [True, False])
def test_pruned_neurons_are_frozen(convert_first):
    model = make()
    if convert_first:
        neq.convert(model)
    prune_neurons(model)
    pruning.keep_zeros(model)
    neq.convert(model)
    assert indices(model) == ACTIVE
    model(torch.randn(5, 1, 6, 6)).sum().backward()
    assert not model[4].weight.grad[[0, 5]].any()
    neq.convert(neq.revert(model))
    assert indices(model) == ACTIVE
    pruning.set_masks(model, {})
    assert all(active.is_full for active in neq.get_active(model).values())


def test_zeros_that_nobody_pruned_learn():
    model = make()
    nn.init.zeros_(model[4].weight)
    neq.convert(model)
    assert neq.get_active(model)["4"].is_full
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step(model, optimizer)
    pruning.apply_masks(model)
    assert model[4].weight.any()


def test_what_is_chosen_and_what_is_pruned_are_kept_apart():
    model = neq.convert(make())
    prune_neurons(model)
    pruning.keep_zeros(model)
    neq.set_active(model, {"4": [0, 1, 2]})
    assert indices(model)["4"] == [1, 2]
    pruning.set_masks(model, {})
    assert indices(model)["4"] == [0, 1, 2]
    neq.set_active(model, {"4": None})
    assert indices(model)["4"] == list(range(6))


def test_together_with_a_tracker():
    model = neq.convert(make())
    tracker = neq.Equilibrium(
        model, [torch.randn(2, 1, 6, 6)], selector=lambda scores: {
            name: torch.arange(len(s.velocity)) % 2 == 0 for name, s in scores.items()
        },
    )  # fmt: skip
    tracker.update()
    prune_neurons(model)
    pruning.keep_zeros(model)
    tracker.update()
    assert indices(model) == {"0": [0, 2], "1": [0], "4": [2, 4], "6": [0, 1, 2]}
    state = tracker.state_dict()
    assert state["layers"]["4"].tolist() == [True, False] * 3
    pruning.set_masks(model, {})
    assert indices(model)["4"] == [0, 2, 4]


@pytest.mark.parametrize("kind", ["protect", "neq.optim"])
def test_optimizers_hold_pruned_neurons(kind):
    model = neq.convert(make())
    if kind == "protect":
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        neq.protect(optimizer, model)
    else:
        optimizer = neq.optim.SGD(model.parameters(), 0.1, momentum=0.9, model=model)
    step(model, optimizer)
    prune_neurons(model)
    pruning.keep_zeros(model)
    bias = model[4].bias.detach().fill_(2).clone()
    for _ in range(2):
        step(model, optimizer)
    assert not model[4].weight[[0, 5]].any()
    assert torch.equal(model[4].bias[[0, 5]], bias[[0, 5]])
    assert model[4].weight[1, 3]
    pruning.apply_masks(model)
    assert not model[4].weight[1, 3]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_stay_pruned(copied):
    model = neq.convert(make())
    prune_neurons(model)
    pruning.keep_zeros(model)
    again = copied(model)
    assert indices(again) == ACTIVE
    again[4].weight.data.fill_(1)
    pruning.apply_masks(again)
    assert not again[4].weight[0].any()
    assert model[4].weight[2].all()


def test_profile_and_flops_leave_both_sets():
    model = neq.convert(make())
    prune_neurons(model)
    pruning.keep_zeros(model)
    neq.set_active(model, {"4": [0, 1, 2]})
    neq.flops(model, torch.randn(2, 1, 6, 6))
    assert indices(model)["4"] == [1, 2]
    assert model[4].chosen.index.tolist() == [0, 1, 2]


def test_masks_travel():
    model, other = make(), make()
    prune_neurons(model)
    pruning.keep_zeros(model)
    masks = pruning.get_masks(model)
    assert set(masks) == {"0.weight", "1.weight", "1.bias", "4.weight"}
    pruning.set_masks(other, masks)
    pruning.apply_masks(other)
    assert torch.equal(other[4].weight == 0, model[4].weight == 0)
    with pytest.raises(KeyError, match=r"got '2\.weight'"):
        pruning.set_masks(other, {"2.weight": masks["0.weight"]})
    with pytest.raises(ValueError, match=r"shape \(4, 1, 3, 3\) for '0\.weight'"):
        pruning.set_masks(other, {"0.weight": masks["1.bias"]})
    assert set(pruning.get_masks(other)) == set(masks)
    other[4].weight = nn.Parameter(torch.ones(6, 63))
    with pytest.raises(RuntimeError, match="expected 'weight' of a Linear as it was pruned"):
        pruning.apply_masks(other)


def test_shares():
    model = make()
    nn.init.constant_(model[1].bias, 1)
    prune_neurons(model)
    total = sum(p.numel() for p in model.parameters())
    assert pruning.share_zeroed(model) == pytest.approx((9 + 3 + 128 + 1) / total)
    assert pruning.share_removed(model) == pytest.approx(3 / 13)
    with pytest.raises(ValueError, match="Linear, Conv or BatchNorm"):
        pruning.share_zeroed(nn.ReLU())
    transposed = nn.ConvTranspose2d(4, 6, 3, groups=2)
    with torch.no_grad():
        transposed.weight[2:, 1] = 0  # neuron 4: the second of the second group
    assert pruning.share_removed(transposed) == pytest.approx(1 / 6)
