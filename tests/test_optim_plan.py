"""neq.optim sorts parameters into operator calls once: when the sorting has to be done again.

Each change is made between steps of one optimizer, and of torch's own under a protect that copies
rows and looks everything up at each step; their steps stay equal.
"""

import copy

import pytest
import torch
from optim_net import OPTIMIZERS, assert_close, give_gradients, network, ours, theirs
from protect_net import one_thread  # noqa: F401
from torch import nn

import neq_kernels as neq
from neq_kernels.optim.batches import facts_of


class Pair:
    """The same network twice, stepped by neq.optim and by torch's optimizer."""

    def __init__(self, name, **options):
        self.models = network(), network()
        self.optimizers = (
            ours(name, self.models[0], **options),
            theirs(name, self.models[1], **options),
        )
        self.protection = neq.protect(self.optimizers[1], self.models[1])
        self.seed = 0

    def __iter__(self):
        return iter(zip(self.models, self.optimizers, strict=True))

    def step(self, missing=(), channels_last=False, change=lambda model: None):
        self.protection._plan = None
        with neq.backends.use("torch"):
            self._step(1, missing, channels_last, change)
        self._step(0, missing, channels_last, change)
        self.seed += 1
        (model, optimizer), (twin, plain) = self
        assert_close(model, optimizer, twin, plain)

    def _step(self, which, missing, channels_last, change):
        model, optimizer = list(self)[which]
        give_gradients(model, torch.Generator().manual_seed(self.seed), missing, channels_last)
        change(model)
        optimizer.step()

    def settle(self):
        """The calls of the last step serve again."""
        self.step()
        self.step()
        plan = self.optimizers[0]._plan
        self.step()
        assert self.optimizers[0]._plan is plan is not None


@pytest.fixture(params=OPTIMIZERS)
def pair(request):
    pair = Pair(request.param)
    pair.settle()
    return pair


def test_another_active_set(pair):
    for index in ([0, 2], [1, 3, 4], [], None, [2]):
        for model in pair.models:
            model[4].set_active(index)
        pair.step()
        pair.step()


def test_a_checkpoint_is_loaded(pair):
    saved = [copy.deepcopy(optimizer.state_dict()) for optimizer in pair.optimizers]
    pair.step()
    for optimizer, state in zip(pair.optimizers, saved, strict=True):
        optimizer.load_state_dict(state)
    pair.step()


def test_state_is_replaced_or_removed(pair):
    for model, optimizer in pair:
        state = optimizer.state[model[4].weight]
        state.update({key: value.clone() for key, value in state.items()})
    pair.step()
    for model, optimizer in pair:
        optimizer.state.pop(model[4].weight)
    pair.step()
    for _, optimizer in pair:
        optimizer.state.clear()
    pair.step()


def test_data_is_swapped(pair):
    """Of parameters and of state, complex ones too."""
    for model, optimizer in pair:
        for p in model.parameters():
            p.data = p.data.clone()
            for value in optimizer.state[p].values():
                value.data = value.data.clone()
    pair.step()


def test_dtype(pair):
    for model, optimizer in pair:
        model[4].double()
        for p in model[4].parameters():
            for key, value in optimizer.state[p].items():
                if key != "step":
                    value.data = value.data.double()
    pair.step()
    kinds = {batch.key[1] for of_group in pair.optimizers[0]._plan.batches for batch in of_group}
    assert kinds == {torch.float32, torch.float64, torch.complex64}


def test_device():
    """Without a second one at hand: it is among what a plan is compared by."""
    here, there = (nn.Parameter(torch.empty(2, device=device)) for device in ("cpu", "meta"))
    one, other = (facts_of([p], [torch.empty_like(p)], ("step",)) for p in (here, there))
    assert one == facts_of([here], [torch.empty(2)], ("step",))
    assert one != other


def test_a_group_is_added_and_a_parameter_changes_groups(pair):
    for model, optimizer in pair:
        model.append(nn.Linear(3, 2, dtype=torch.float32))
        torch.manual_seed(1)
        nn.init.normal_(model[6].weight)
        nn.init.zeros_(model[6].bias)
        optimizer.add_param_group({"params": [model[6].weight, model[6].bias], "lr": 0.05})
    pair.step()
    pair.step()
    for optimizer in pair.optimizers:
        first, second = optimizer.param_groups
        second["params"].insert(0, first["params"].pop())
    pair.step()
    for model in pair.models:
        neq.convert(model)
        model[6].set_active([1])
    pair.step()


def test_a_parameter_is_replaced(pair):
    for model in pair.models:
        model[4].set_active([0, 2])
    pair.settle()
    for model, optimizer in pair:
        torch.manual_seed(2)
        model[4].weight = nn.Parameter(torch.randn(5, 24))
        optimizer.param_groups[0]["params"][4] = model[4].weight
    pair.step()
    before = pair.models[0][4].weight.detach().clone()
    pair.step()
    rows = pair.models[0][4].active.frozen
    assert torch.equal(pair.models[0][4].weight[rows], before[rows])


def test_gradients_come_and_go_and_change_their_strides(pair):
    for missing in (("0.bias", "5.phase"), (), ("4.weight",)):
        pair.step(missing)
    pair.step(channels_last=True)
    for optimizer in pair.optimizers:
        optimizer.zero_grad(set_to_none=True)
        optimizer.step()

    def spread(model):
        for p in model.parameters():
            if p.dim() == 2:
                p.grad = p.grad.t().contiguous().t()

    pair.step(change=spread)


def test_requires_grad_false(pair):
    """Torch's optimizers step whatever has a gradient."""
    for model in pair.models:
        model[4].requires_grad_(False)
    pair.step()
    pair.step(missing=("4.weight", "4.bias"))


def test_a_sparse_gradient_is_refused():
    pair = Pair("SGD")
    pair.settle()
    model, optimizer = next(iter(pair))
    before = model[0].weight.detach().clone()
    model[4].weight.grad = model[4].weight.grad.to_sparse()
    with pytest.raises(RuntimeError, match="grad: expected a dense gradient, got layout"):
        optimizer.step()
    assert torch.equal(model[0].weight, before)


CHANGES = {
    "SGD": [
        {"lr": 0.01},
        {"lr": torch.tensor(0.02)},
        {"momentum": 0.5},
        {"momentum": 0.0},
        {"momentum": 0.8},
        {"weight_decay": 0.0},
        {"dampening": 0.2},
        {"maximize": True},
        {"dampening": 0, "nesterov": True},
    ],
    "AdamW": [
        {"lr": 0.001},
        {"lr": torch.tensor(0.002)},
        {"betas": (0.8, 0.99)},
        {"eps": 1e-3},
        {"weight_decay": 0.2},
        {"maximize": True},
        {"decoupled_weight_decay": False},
    ],
}


def test_options(pair):
    name = type(pair.optimizers[0]).__name__
    for change in CHANGES[name]:
        for optimizer in pair.optimizers:
            optimizer.param_groups[0].update(copy.deepcopy(change))
        pair.step()
        pair.step()


def test_only_the_first_gradient_is_not_dampened():
    pair = Pair("SGD", dampening=0.3)
    for _ in range(3):
        pair.step()
    pair.settle()


def test_momentum_where_there_was_none():
    pair = Pair("SGD", momentum=0)
    pair.settle()
    for optimizer in pair.optimizers:
        optimizer.param_groups[0]["momentum"] = 0.9
    pair.step()
    pair.step()


def test_amsgrad_from_a_checkpoint():
    pair = Pair("AdamW")
    pair.settle()
    for _, optimizer in pair:
        optimizer.param_groups[0]["amsgrad"] = True
        for p, state in optimizer.state.items():
            state["max_exp_avg_sq"] = torch.zeros_like(p)
    pair.step()
    pair.step()


def test_a_schedule(pair):
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5) for o in pair.optimizers]
    for _ in range(3):
        pair.step()
        for scheduler in schedulers:
            scheduler.step()


@pytest.mark.parametrize("together", [False, True])
def test_copies_have_calls_of_their_own(pair, together):
    (model, optimizer), _ = pair
    if together:
        twin, copied = copy.deepcopy((model, optimizer))
    else:
        copied = copy.deepcopy(optimizer)
        twin = copied.model
    before = [p.detach().clone() for p in model.parameters()]
    assert copied._plan is None
    give_gradients(twin, torch.Generator().manual_seed(9))
    copied.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    give_gradients(model, torch.Generator().manual_seed(9))
    optimizer.step()
    assert_close(model, optimizer, twin, copied)
