"""protect: which neurons it holds, and what becomes of their state."""

import pytest
import torch
from protect_net import (
    adam,
    assert_held,
    freeze,
    make,
    one_thread,  # noqa: F401
    parameters,
    same,
    train,
)
from torch import nn

import neq_kernels as neq


@pytest.mark.parametrize("convert_first", [True, False])
def test_before_and_after_convert(convert_first):
    model = make()
    if convert_first:
        neq.convert(model)
    optimizer = adam(model)
    neq.protect(optimizer, model)
    neq.convert(model)
    train(model, optimizer)
    rows = freeze(model)
    conv, norm, head = parameters(model[0]), parameters(model[1]), parameters(model[4])
    train(model, optimizer)
    assert_held(model[0], conv, rows)
    assert not any(same(model[1], norm))
    assert all(same(model[4], head))
    neq.revert(model)
    train(model, optimizer)
    assert not any(same(model[0], conv, rows))
    assert not any(same(model[4], head))


def test_remove_ends_it_and_protect_may_come_again():
    model = neq.convert(make())
    optimizer = adam(model)
    protection = neq.protect(optimizer, model)
    rows = freeze(model)
    protection.remove()
    protection.remove()
    before = parameters(model[0])
    train(model, optimizer)
    assert not any(same(model[0], before, rows)), "weight decay moves what nothing protects"
    neq.protect(optimizer, model, state="keep")
    before = parameters(model[0])
    train(model, optimizer)
    assert all(same(model[0], before, rows))


def test_parameter_groups_also_added_later():
    model = neq.convert(make())
    optimizer = torch.optim.SGD([{"params": [model[0].weight], "weight_decay": 0.1}], momentum=0.9)
    neq.protect(optimizer, model)
    optimizer.add_param_group({"params": [model[0].bias], "weight_decay": 0.5})
    rows = freeze(model)
    before, head = parameters(model[0]), parameters(model[4])
    train(model, optimizer)
    assert_held(model[0], before, rows)
    assert all(same(model[4], head)), "not this optimizer's"


def test_layer_frozen_before_the_optimizer_was_made_trains_when_thawed():
    model = neq.convert(make())
    freeze(model)
    optimizer = adam(model)
    neq.protect(optimizer, model)
    before = parameters(model[4])
    train(model, optimizer)
    assert all(same(model[4], before))
    model[4].set_active(None)
    train(model, optimizer, steps=1)
    assert not any(same(model[4], before))
    moved = (model[4].weight - before[0]).abs().max()
    assert moved < 0.0101, "a first step of Adam is one learning rate long"


def test_momentum_restarts_when_the_same_set_returns():
    model = neq.convert(make())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    neq.protect(optimizer, model)
    freeze(model)
    frozen = model[4].active
    for _ in range(2):
        model[4].set_active(None)
        train(model, optimizer)
        assert optimizer.state[model[4].weight]["momentum_buffer"].all()
        model[4].set_active(frozen)
        train(model, optimizer, steps=1)
        assert not optimizer.state[model[4].weight]["momentum_buffer"].any()


@pytest.mark.parametrize(("state", "shortest", "longest"), [("hold", 0, 1.1), ("reference", 2, 3)])
def test_how_far_a_thawed_neuron_steps(state, shortest, longest):
    model = neq.convert(nn.Sequential(nn.Linear(1, 2)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.99))
    neq.protect(optimizer, model, state=state)
    weight = model[0].weight

    def furthest(steps):
        far = 0.0
        for _ in range(steps):
            weight.grad = model[0].active.mask().float()[:, None]
            before = weight[1].item()
            optimizer.step()
            far = max(far, before - weight[1].item())
        return far

    assert 0.9 < furthest(200) < 1.1
    model[0].set_active([0])
    assert furthest(800) == 0
    model[0].set_active(None)
    assert shortest < furthest(20) < longest


def test_state_made_while_frozen():
    model = neq.convert(make())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    neq.protect(optimizer, model, state="keep")
    rows = freeze(model)
    train(model, optimizer, steps=1)
    assert not optimizer.state[model[0].weight]["momentum_buffer"][rows].any()
    averaging = torch.optim.ASGD(model.parameters(), lr=0.1, lambd=0.1)
    neq.protect(averaging, model)
    train(model, averaging)
    assert torch.equal(averaging.state[model[0].weight]["ax"][rows], model[0].weight[rows])


def test_columns_of_conv1d():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = neq.convert(nn.Sequential(conv1d(6, 6), nn.Linear(6, 2)))
    optimizer = adam(model)
    neq.protect(optimizer, model)

    def steps():
        for seed in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))).sum().backward()
            optimizer.step()

    steps()
    model[0].set_active([0, 2, 3, 4])
    before, bias = parameters(model[0])
    second = optimizer.state[model[0].weight]["exp_avg_sq"].clone()
    steps()
    weight = model[0].weight
    assert torch.equal(weight[:, [1, 5]], before[:, [1, 5]])
    assert torch.equal(model[0].bias[[1, 5]], bias[[1, 5]])
    assert (weight != before)[:, [0, 2, 3, 4]].all()
    state = optimizer.state[weight]
    assert torch.equal(state["exp_avg_sq"][:, [1, 5]], second[:, [1, 5]])
    assert not state["exp_avg"][:, [1, 5]].any()
    assert state["exp_avg"][:, [0, 2, 3, 4]].any()


def test_channels_last_weights_keep_their_strides():
    model = neq.convert(make(channels_last=True))
    optimizer = adam(model)
    neq.protect(optimizer, model)
    strides = model[0].weight.stride()
    rows = freeze(model)
    before = parameters(model[0])
    train(model, optimizer)
    assert model[0].weight.stride() == strides != make()[0].weight.stride()
    assert_held(model[0], before, rows)


def test_frozen_neurons_survive_a_step_that_yields_nan():
    model = neq.convert(make())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    neq.protect(optimizer, model)
    rows = freeze(model)
    before = parameters(model[0])
    for p in model[0].parameters():
        p.grad = torch.full_like(p, float("nan"))
    optimizer.step()
    assert all(same(model[0], before, rows))
    assert model[0].weight[0].isnan().all()
