"""Optimizers follow a shrunk model: the same steps as before, for the neurons that stayed."""

import copy

import pytest
import torch
from torch import nn

import neq_kernels as neq
from neq_kernels.pruning import shrink
from tests.shrink_nets import zero

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIMIZERS = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9),
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), 0.01, amsgrad=True),
    "Adafactor": lambda m: torch.optim.Adafactor(m.parameters(), 0.01),
    "neq.SGD": lambda m: neq.optim.SGD(m.parameters(), 0.1, momentum=0.9, model=m),
}


def make():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(32, 4)
    )
    zero(model[0], [2, 3])
    nn.init.zeros_(model[0].bias)
    zero(model[2], [2, 3])
    return model


def gradients(model, x):
    model.zero_grad()
    model(x).square().sum().backward()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_cut_and_parameters_are_the_same_objects(name):
    model, x = make(), torch.randn(4, 3, 6, 6)
    optimizer = OPTIMIZERS[name](model)
    gradients(model, x)
    for parameter in model.parameters():
        parameter.grad.mul_(parameter != 0)  # pruned neurons stay pruned
    optimizer.step()
    zero(model[0], [2, 3])
    zero(model[2], [2, 3])
    big = copy.deepcopy(model)
    states = {n: copy.deepcopy(optimizer.state[p]) for n, p in model.named_parameters()}
    identities = [id(p) for p in model.parameters()]
    shrink(model, x, optimizer=optimizer)
    assert [id(p) for p in model.parameters()] == identities
    assert model[0].weight.shape == (6, 3, 3, 3)
    assert model[2].weight.shape == (6, 2, 3, 3)
    assert model[2].groups == 3
    rows = {"0.weight": [0, 1, 4, 5, 6, 7], "2.weight": [0, 1, 4, 5, 6, 7]}
    for n, kept in rows.items():
        parameter = model.get_parameter(n)
        assert torch.equal(parameter, big.get_parameter(n)[kept])
        for key, value in states[n].items():
            found = optimizer.state[parameter][key]
            if value.dim() == 4 and value.shape[0] == 8:
                assert torch.equal(found, value[kept])
    gradients(model, x)
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_momentum_steps_as_in_the_big_model():
    """Zero constants: big and small model have the same gradients, and take the same steps."""
    model, x = make(), torch.randn(4, 3, 6, 6)
    nn.init.zeros_(model[2].bias)
    big = copy.deepcopy(model)
    pair = [(m, OPTIMIZERS["SGD"](m)) for m in (model, big)]
    for step in range(3):
        for m, optimizer in pair:
            gradients(m, x)
            if m is big or step == 0:  # of the pruned neurons
                m[0].weight.grad[2:4] = 0
                m[2].weight.grad[2:4] = 0
                m[0].bias.grad[2:4] = 0
                m[2].bias.grad[2:4] = 0
            optimizer.step()
        if step == 0:
            shrink(model, x, optimizer=pair[0][1])
    torch.testing.assert_close(model[0].weight, big[0].weight[[0, 1, 4, 5, 6, 7]])
    torch.testing.assert_close(model[2].bias, big[2].bias[[0, 1, 4, 5, 6, 7]])


def test_protect_follows():
    model, x = neq.convert(make()), torch.randn(4, 3, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    neq.protect(optimizer, model)
    gradients(model, x)
    optimizer.step()
    zero(model[0], [2, 3])
    zero(model[2], [2, 3])
    shrink(model, x, optimizer=optimizer)
    neq.set_active(model, {"0": [0, 5]})
    before = model[0].weight.detach().clone()
    gradients(model, x)
    optimizer.step()
    assert torch.equal(model[0].weight[1:5], before[1:5])
    assert not torch.equal(model[0].weight[5], before[5])


def test_state_that_cannot_be_cut_is_refused_before_anything_changes():
    model, x = make(), torch.randn(4, 3, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.state[model[0].weight]["odd"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"'odd' of 0\.weight with shape \(5,\)"):
        shrink(model, x, optimizer=optimizer)
    assert model[0].weight.shape[0] == 8


@pytest.mark.parametrize(("wrong", "kind"), [(3, TypeError), (None, ValueError)])
def test_wrong_optimizer(wrong, kind):
    optimizer = wrong or torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    with pytest.raises(kind, match="optimizer: expected"):
        shrink(make(), torch.randn(1, 3, 6, 6), optimizer=optimizer)
