"""protect: what stands around an optimizer and its step, and misuse."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from protect_net import (
    adam,
    assert_held,
    backward,
    freeze,
    make,
    one_thread,  # noqa: F401
    parameters,
    same,
    train,
)
from torch import nn

import neq_kernels as neq


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_skips_a_step(fused):
    model = neq.convert(make())
    optimizer = adam(model, fused=fused)
    neq.protect(optimizer, model)
    scaler = torch.amp.GradScaler(device="cpu", init_scale=8.0)

    def step(factor=1.0):
        optimizer.zero_grad()
        backward(model, scale=lambda loss: scaler.scale(loss * factor))
        scaler.step(optimizer)
        scaler.update()

    step()
    rows = freeze(model)
    before, weight = parameters(model[0]), model[0].weight
    second = optimizer.state[weight]["exp_avg_sq"].clone()
    step(factor=float("inf"))
    assert all(same(model[0], before)), "the whole step is skipped"
    assert torch.equal(optimizer.state[weight]["exp_avg_sq"], second)
    step()
    assert_held(model[0], before, rows)
    state = optimizer.state[weight]
    assert torch.equal(state["exp_avg_sq"][rows], second[rows])
    assert not state["exp_avg"][rows].any()


class Wrapper:
    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.step()


class OptimizerLikeWrapper(torch.optim.Optimizer):
    """As accelerate's: an Optimizer by class, without hooks of its own."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self):
        self.optimizer.step()


@pytest.mark.parametrize(
    "wrap", [Wrapper, OptimizerLikeWrapper, lambda o: Wrapper(OptimizerLikeWrapper(Wrapper(o)))]
)
def test_wrapped_optimizers(wrap):
    model = neq.convert(make())
    optimizer = adam(model)
    wrapped = wrap(optimizer)
    neq.protect(wrapped, model)
    rows = freeze(model)
    before = parameters(model[0])
    for _ in range(3):
        optimizer.zero_grad()
        backward(model)
        wrapped.step()
    assert_held(model[0], before, rows)
    with pytest.raises(ValueError, match="not protected"):
        neq.protect(optimizer, model)


def test_zero_redundancy_optimizer(tmp_path):
    zero = pytest.importorskip("torch.distributed.optim").ZeroRedundancyOptimizer
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = neq.convert(make())
        optimizer = zero(
            model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1
        )
        neq.protect(optimizer, model)
        train(model, optimizer)
        rows = freeze(model)
        before = parameters(model[0])
        train(model, optimizer)
        assert_held(model[0], before, rows)
        assert not optimizer.optim.state[model[0].weight]["momentum_buffer"][rows].any()
    finally:
        torch.distributed.destroy_process_group()


def test_state_dict_round_trip():
    model = neq.convert(make())
    optimizer = adam(model)
    neq.protect(optimizer, model)
    train(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    rows = freeze(model)
    train(model, optimizer)
    optimizer.load_state_dict(saved)
    state = optimizer.state[model[4].weight]
    assert state["exp_avg"].any()
    before, second = parameters(model[4]), state["exp_avg_sq"].clone()
    conv = parameters(model[0])
    train(model, optimizer)
    state = optimizer.state[model[4].weight]
    assert all(same(model[4], before))
    assert all(same(model[0], conv, rows))
    assert not state["exp_avg"].any(), "loaded momentum restarts too"
    assert torch.equal(state["exp_avg_sq"], second)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_of_model_and_optimizer_can_be_protected(copied):
    model = neq.convert(make())
    optimizer = adam(model)
    neq.protect(optimizer, model)
    train(model, optimizer)
    rows = freeze(model)
    twin, other = copied((model, optimizer))
    neq.protect(other, twin)
    before = parameters(twin[0])
    train(twin, other)
    assert_held(twin[0], before, rows)
    assert all(same(model[0], before)), "the original is untouched"


def test_lr_schedulers():
    model = neq.convert(make())
    optimizer = adam(model)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
    neq.protect(optimizer, model)
    rows = freeze(model)
    before = parameters(model[0])
    for _ in range(8):
        train(model, optimizer, steps=1)
        scheduler.step()
    assert_held(model[0], before, rows)


@pytest.mark.parametrize("as_keyword", [False, True])
def test_closure_makes_the_first_gradients(as_keyword):
    model = neq.convert(make())
    optimizer = adam(model)
    neq.protect(optimizer, model)
    rows = freeze(model)
    before, head = parameters(model[0]), parameters(model[4])

    def closure():
        optimizer.zero_grad()
        return backward(model)

    for _ in range(3):
        optimizer.zero_grad()
        loss = optimizer.step(closure=closure) if as_keyword else optimizer.step(closure)
        assert loss.item() > 0
    assert_held(model[0], before, rows)
    assert all(same(model[4], head))


class Drift(torch.optim.Optimizer):
    """Moves every parameter, with or without a gradient, by a state of its own."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            pace = self.state[p].setdefault("pace", torch.ones_like(p))
            code = self.state[p].setdefault("code", torch.zeros_like(p, dtype=torch.uint8))
            p.add_(pace.mul_(2))
            code.add_(1)


def test_optimizers_from_elsewhere():
    model = neq.convert(make())
    optimizer = Drift(model.parameters())
    neq.protect(optimizer, model)
    optimizer.step()
    rows = freeze(model)
    before, head = parameters(model[0]), parameters(model[4])
    optimizer.step()
    assert_held(model[0], before, rows)
    assert all(same(model[4], head))
    state = optimizer.state[model[0].weight]
    assert (state["pace"][rows] == 2).all()
    assert (state["pace"][0] == 4).all()
    assert (state["code"] == 2).all()


def test_hooks_do_not_keep_the_optimizer_alive():
    model = neq.convert(make())
    optimizer = adam(model)
    neq.protect(optimizer, model)
    train(model, optimizer)
    alive = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert alive() is None


def test_errors():
    model, stranger = neq.convert(make()), neq.convert(make())
    optimizer = adam(model)
    with pytest.raises(ValueError, match=r"state: expected 'hold', 'reference' or 'keep', got 'x'"):
        neq.protect(optimizer, model, state="x")
    with pytest.raises(TypeError, match=r"optimizer: expected a torch.optim.Optimizer.*got list"):
        neq.protect([optimizer], model)
    with pytest.raises(TypeError, match=r"optimizer: expected .*got Sequential"):
        neq.protect(model, optimizer)
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got generator"):
        neq.protect(optimizer, model.parameters())
    with pytest.raises(ValueError, match=r"none of the 6 that this Adam holds.*not of a copy"):
        neq.protect(optimizer, stranger)
    assert not optimizer._optimizer_step_pre_hooks, "nothing changed"


@pytest.mark.parametrize("part", [lambda m: m, lambda m: m[0], lambda m: nn.Sequential(m)])
def test_twice_is_an_error(part):
    model = neq.convert(make())
    optimizer = adam(model)
    neq.protect(optimizer, model)
    with pytest.raises(ValueError, match=r"not protected .* got one that is; call remove\(\)"):
        neq.protect(optimizer, part(model))
    neq.protect(adam(model), model)
    assert len(optimizer._optimizer_step_pre_hooks) == 1
