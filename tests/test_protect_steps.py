"""protect where it steps active rows itself, and where it copies frozen ones: which, and how."""

import copy

import pytest
import torch
from optim_net import OPTIMIZERS, OPTIONS, assert_close, give_gradients
from protect_net import freeze, make, one_thread, parameters, same  # noqa: F401
from torch import nn

import neq_kernels as neq
from neq_kernels import native

needs_native = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))


@pytest.fixture(params=["native", "torch"])
def way(request):
    """native: active rows are stepped; torch: frozen ones are copied."""
    if request.param == "native" and not native.available():
        pytest.skip(str(native.why_not()))
    with neq.backends.use(request.param):
        yield request.param


def protected(name, model, **options):
    optimizer = getattr(torch.optim, name)(model.parameters(), **{**OPTIONS[name], **options})
    return optimizer, neq.protect(optimizer, model)


def step(model, optimizer, seed=0):
    give_gradients(model, torch.Generator().manual_seed(seed))
    optimizer.step()


def shown(optimizer):
    """Which gradients the optimizer's step gets to see."""
    seen = []
    optimizer.register_step_pre_hook(
        lambda its, *_: seen.append([p.grad is not None for p in its.param_groups[0]["params"]])
    )
    return seen


@needs_native
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_is_not_shown_what_is_stepped_for_it(name):
    model = neq.convert(make())
    optimizer, _ = protected(name, model)
    seen = shown(optimizer)
    step(model, optimizer)
    freeze(model)
    give_gradients(model, torch.Generator().manual_seed(1))
    gradients = [p.grad for p in model.parameters()]
    optimizer.step()
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    model[0].set_active(None)
    step(model, optimizer)
    norm, frozen_whole = [True, True], [False, False]
    assert seen == [
        [True] * 6,
        [False, False, *norm, *frozen_whole],
        [True, True, *norm, *frozen_whole],
    ]


class Half(torch.optim.SGD):
    """Steps half as far."""

    def step(self, closure=None):
        before = [p.detach().clone() for p in self.param_groups[0]["params"]]
        super().step(closure)
        with torch.no_grad():
            for p, old in zip(self.param_groups[0]["params"], before, strict=True):
                p.lerp_(old, 0.5)


@needs_native
@pytest.mark.parametrize(
    ("kind", "options", "dtype"),
    [
        (Half, {"lr": 0.1, "weight_decay": 0.1}, torch.float32),
        (torch.optim.RMSprop, {"lr": 0.1}, torch.float32),
        (torch.optim.SGD, {"lr": 0.1}, torch.bfloat16),
    ],
)
def test_what_it_does_not_know_is_copied(kind, options, dtype):
    model = neq.convert(make()).to(dtype)
    optimizer = kind(model.parameters(), **options)
    neq.protect(optimizer, model)
    seen = shown(optimizer)
    step(model, optimizer)
    rows = freeze(model)
    before = parameters(model[0])
    step(model, optimizer, seed=1)
    assert seen[-1] == [True] * 4 + [False] * 2
    assert all(same(model[0], before, rows))
    assert not any(same(model[0], before, [0]))


@needs_native
def test_steps_to_capture_or_to_differentiate_are_the_optimizers():
    model = neq.convert(make())
    optimizer, _ = protected("AdamW", model, foreach=False)
    step(model, optimizer)
    freeze(model)
    seen = shown(optimizer)
    for differentiable in (False, True):
        optimizer.param_groups[0]["differentiable"] = differentiable
        step(model, optimizer)
        assert seen[-1][0] == differentiable
    optimizer.param_groups[0].update(differentiable=False, capturable=True)
    with pytest.raises(AssertionError, match="If capturable=True"):
        step(model, optimizer)


@needs_native
@pytest.mark.parametrize("state", ["hold", "reference", "keep"])
def test_only_the_optimizer_makes_second_moments_decay(state):
    model = neq.convert(make())
    optimizer = torch.optim.AdamW(model.parameters())
    neq.protect(optimizer, model, state=state)
    seen = shown(optimizer)
    step(model, optimizer)
    freeze(model)
    step(model, optimizer)
    assert seen[-1][0] == (state == "reference")


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}])
@pytest.mark.parametrize("name", [*OPTIMIZERS, "Adam"])
def test_states_that_are_replaced(name, options, way):
    """By a checkpoint, one by one, emptied; and what an option adds later."""
    base = OPTIONS.get(name, {"lr": 0.01, "weight_decay": 0.1})
    models = [neq.convert(make()) for _ in range(2)]
    (model, twin), kind = models, getattr(torch.optim, name)
    optimizer, plain = (kind(each.parameters(), **base, **options) for each in models)
    neq.protect(optimizer, model)
    saved = None

    def steps(seed):
        before, frozen = parameters(model[0]), model[0].active.frozen.tolist()
        for each, its in ((model, optimizer), (twin, plain)):
            give_gradients(each, torch.Generator().manual_seed(seed))
            its.step()
        assert all(same(model[0], before, frozen))
        rows = model[0].active.index.long()
        torch.testing.assert_close(model[0].weight[rows], twin[0].weight[rows])
        for key, value in optimizer.state[model[0].weight].items():
            other = plain.state[twin[0].weight][key]
            if value.dim() == 4:
                value, other = value[rows], other[rows]
            torch.testing.assert_close(value, other, msg=key)

    steps(0)
    saved = copy.deepcopy(optimizer.state_dict())
    for each in models:
        freeze(each)
    steps(1)
    for its in (optimizer, plain):
        its.load_state_dict(copy.deepcopy(saved))
    steps(2)
    steps(3)
    for its in (optimizer, plain):
        for state in its.state.values():
            state.update({key: value.clone() for key, value in state.items()})
    steps(4)
    steps(5)
    for its in (optimizer, plain):
        its.state.clear()
        if name != "SGD":
            its.param_groups[0]["amsgrad"] = True
    steps(6)
    steps(7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_replaced_parameter_is_protected(name, way):
    model = neq.convert(make())
    optimizer, _ = protected(name, model)
    rows = freeze(model)
    step(model, optimizer)
    fresh = nn.Parameter(torch.randn(6, 2, 3, 3))
    model[0].weight = fresh
    optimizer.param_groups[0]["params"][0] = fresh
    before = fresh.detach().clone()
    for seed in range(3):
        step(model, optimizer, seed)
    assert torch.equal(fresh[rows], before[rows])
    assert not torch.equal(fresh[0], before[0])


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_under_compile_the_step_is_left_to_python(name, way):
    model = neq.convert(make())
    optimizer, _ = protected(name, model)
    step(model, optimizer)
    rows = freeze(model)
    before = parameters(model[0])

    @torch.compile(backend="eager")
    def compiled():
        optimizer.step()

    for seed in range(2):
        give_gradients(model, torch.Generator().manual_seed(seed))
        compiled()
    assert all(same(model[0], before, rows))
    assert not any(same(model[0], before, [0]))


def test_copies_are_written_over_those_of_the_step_before():
    model = neq.convert(make())
    optimizer = torch.optim.RMSprop(model.parameters(), weight_decay=0.1)
    protection = neq.protect(optimizer, model)
    freeze(model)

    def copies():
        kept = protection._copies.values()
        return {t.data_ptr() for c in kept for t in (c.values, *c.held.values())}

    step(model, optimizer)
    step(model, optimizer)
    first = copies()
    assert len(first) == 4, "weight, bias, and the square_avg of each"
    step(model, optimizer)
    assert copies() == first
    rows = [0, 3]
    model[0].set_active([1, 2, 4, 5])
    before = parameters(model[0])
    step(model, optimizer)
    step(model, optimizer)
    assert all(same(model[0], before, rows))
    model.double()
    before = parameters(model[0])
    optimizer.state.clear()
    step(model, optimizer)
    step(model, optimizer)
    assert all(same(model[0], before, rows))
    protection.remove()
    assert not copies()


@needs_native
def test_narrow_and_wide_parameters_together():
    """Those in float32 are stepped for the optimizer, those in bfloat16 are copied."""
    model = neq.convert(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4).bfloat16()))
    twin = copy.deepcopy(model)
    optimizer, _ = protected("AdamW", model)
    plain, _ = protected("AdamW", twin)
    step(model, optimizer)
    step(twin, plain)
    for each in (model, twin):
        neq.set_active(each, {"0": [1], "1": [2]})
    for seed in range(3):
        step(model, optimizer, seed)
        with neq.backends.use("torch"):
            step(twin, plain, seed)
    assert_close(model, optimizer, twin, plain)
