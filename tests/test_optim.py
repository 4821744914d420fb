"""neq.optim: the steps of torch's optimizers under protect, while sets change."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optim_net import (
    MOMENTUM,
    OPTIMIZERS,
    assert_close,
    frozen_rows,
    give_gradients,
    network,
    ours,
    theirs,
)
from protect_net import one_thread, parameters, same  # noqa: F401
from torch import nn

import neq_kernels as neq

SETS = st.lists(st.booleans(), min_size=6, max_size=6)
RATES = {"lr": st.sampled_from([0.1, 0.01])}
CHOICES = {
    "SGD": st.fixed_dictionaries(
        {
            **RATES,
            "weight_decay": st.sampled_from([0, 0.1]),
            "maximize": st.booleans(),
        }
    ).flatmap(
        lambda options: st.sampled_from(
            [
                {**options, **more}
                for more in (
                    {},
                    {"momentum": 0.9},
                    {"momentum": 0.5, "dampening": 0.3},
                    {"momentum": 0.9, "nesterov": True},
                )
            ]
        )
    ),
    "AdamW": st.fixed_dictionaries(
        {
            **RATES,
            "betas": st.sampled_from([(0.9, 0.999), (0.5, 0.9), (0.0, 0.9)]),
            "eps": st.sampled_from([1e-8, 1e-3]),
            "weight_decay": st.sampled_from([0, 0.1]),
            "amsgrad": st.booleans(),
            "maximize": st.booleans(),
        }
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_steps_as_torch_under_protect_while_sets_change(name, backend, data):
    options = data.draw(CHOICES[name])
    state = data.draw(st.sampled_from(["hold", "keep"]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    last = data.draw(st.booleans())
    model, twin = network(dtype, last), network(dtype, last)
    kind = getattr(neq.optim, name)
    optimizer = kind(model.parameters(), model=model, state=state, **options)
    plain = getattr(torch.optim, name)(twin.parameters(), **options)
    neq.protect(plain, twin, state=state)
    for seed in range(data.draw(st.integers(3, 8))):
        conv, linear = data.draw(SETS), data.draw(SETS)[:5]
        missing = data.draw(st.sampled_from([(), ("0.bias",), ("4.weight", "5.scale")]))
        for each in (model, twin):
            sets = {"0": torch.tensor(conv), "1": torch.tensor(conv), "4": torch.tensor(linear)}
            neq.set_active(each, sets)
            give_gradients(each, torch.Generator().manual_seed(seed), missing, channels_last=True)
        before = frozen_rows(model)
        optimizer.step()
        plain.step()
        for p, dim, rows, values in before:
            assert torch.equal(p.index_select(dim, rows), values)
        assert_close(model, optimizer, twin, plain)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_columns_of_conv1d(name, backend):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(neq.convert(nn.Sequential(conv1d(6, 40))))
    model, twin = models
    optimizer, plain = ours(name, model), theirs(name, twin)
    neq.protect(plain, twin)
    for seed, index in enumerate(([0, 2, 3], [1, 5], [0, 1, 2, 3, 4, 5], [])):
        for each in models:
            each[0].set_active(index)
            give_gradients(each, torch.Generator().manual_seed(seed))
        optimizer.step()
        plain.step()
        assert_close(model, optimizer, twin, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_narrow_parameters(name, dtype, backend):
    model = neq.convert(nn.Sequential(nn.Linear(24, 5))).to(dtype)
    exact = copy.deepcopy(model).double()
    options = {"eps": 1e-3} if name == "AdamW" else {}  # 1e-8 is nothing in float16
    optimizer, right = ours(name, model, **options), theirs(name, exact, **options)
    model[0].set_active([0, 3])
    before = parameters(model[0])
    for seed in range(5):
        give_gradients(model, torch.Generator().manual_seed(seed))
        for p, q in zip(model.parameters(), exact.parameters(), strict=True):
            q.grad = p.grad.double()
        optimizer.step()
        right.step()
    assert all(same(model[0], before, [1, 2, 4]))
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        error = (p.double() - q)[[0, 3]].abs().max()
        assert error < 8 * torch.finfo(dtype).eps, "five roundings, and those of the state"
        assert {v.dtype for k, v in optimizer.state[p].items() if k != "step"} == {dtype}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_restarts_and_second_moments_are_held(name):
    model = network()
    optimizer = ours(name, model)
    weight = model[4].weight
    give_gradients(model, torch.Generator().manual_seed(0))
    optimizer.step()
    second = optimizer.state[weight].get("exp_avg_sq", torch.zeros(5)).clone()
    model[4].set_active([1, 2])
    give_gradients(model, torch.Generator().manual_seed(1))
    optimizer.step()
    frozen = model[4].active.frozen
    assert not optimizer.state[weight][MOMENTUM[name]][frozen].any()
    assert optimizer.state[weight][MOMENTUM[name]][[1, 2]].all()
    if name == "AdamW":
        assert torch.equal(optimizer.state[weight]["exp_avg_sq"][frozen], second[frozen])
        assert optimizer.state[weight]["step"] == 2
    # The whole layer: without a gradient, and its momentum restarts all the same.
    model[4].set_active([])
    give_gradients(model, torch.Generator().manual_seed(2))
    optimizer.step()
    assert not optimizer.state[weight][MOMENTUM[name]].any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_of_a_loaded_checkpoint_restarts_too(name):
    model = network()
    optimizer = ours(name, model)
    give_gradients(model, torch.Generator().manual_seed(0))
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    model[4].set_active([1, 2])
    give_gradients(model, torch.Generator().manual_seed(1))
    optimizer.step()
    optimizer.load_state_dict(saved)
    momentum = optimizer.state[model[4].weight][MOMENTUM[name]]
    assert momentum[model[4].active.frozen].any()
    optimizer.step()
    momentum = optimizer.state[model[4].weight][MOMENTUM[name]]
    assert not momentum[model[4].active.frozen].any()
