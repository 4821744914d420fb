"""protect: when it is called, on what, and what comes between."""

import copy
import pickle

import pytest
import torch
from torch import nn

import neq_kernels as neq


@pytest.fixture(autouse=True)
def one_thread():
    """On tensors this small, threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(channels_last=False):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)
    )
    if channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def adam(model, **options):
    return torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1, **options)


def backward(model, seed=0, scale=lambda loss: loss):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 2, 4, 4, generator=generator)
    y = torch.randn(8, 5, generator=generator)
    loss = (model(x) - y).square().mean()
    scale(loss).backward()
    return loss


def train(model, optimizer, steps=3):
    for seed in range(steps):
        optimizer.zero_grad()
        backward(model, seed)
        optimizer.step()


def parameters(layer):
    return [p.detach().clone() for p in layer.parameters()]


def same(layer, before, rows=slice(None)):
    return [torch.equal(p[rows], q[rows]) for p, q in zip(layer.parameters(), before, strict=True)]


def assert_held(layer, before, rows):
    """The given rows stand as before, every other one has moved."""
    others = sorted(set(range(layer.weight.size(0))) - set(rows))
    for p, q in zip(layer.parameters(), before, strict=True):
        assert torch.equal(p[rows], q[rows])
        assert all(not torch.equal(p[row], q[row]) for row in others)


def freeze(model):
    """Conv rows 1, 4 and the whole Linear are frozen; the norm stays active."""
    model[0].set_active([0, 2, 3, 5])
    model[4].set_active([])
    return [1, 4]


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
    import gc
    import weakref

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
