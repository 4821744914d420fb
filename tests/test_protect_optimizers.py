"""protect with every optimizer of torch.optim that takes dense gradients, in every variant."""

import inspect
from collections import defaultdict
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from protect_net import one_thread  # noqa: F401
from torch import nn
from torch.optim import Optimizer

import neq_kernels as neq
from neq_kernels.optim import STATE_POLICY

DECAY = {"weight_decay": 0.1}
OPTIONS = {
    "ASGD": [{}, DECAY, {"t0": 2, "lambd": 0.1}],
    "Adadelta": [{}, DECAY],
    "Adafactor": [{}, DECAY],
    "Adagrad": [{}, DECAY, {"initial_accumulator_value": 0.5}],
    "Adam": [{}, DECAY, {**DECAY, "amsgrad": True}, {**DECAY, "decoupled_weight_decay": True}],
    "AdamW": [{}, DECAY, {**DECAY, "amsgrad": True}, {"maximize": True}],
    "Adamax": [{}, DECAY],
    "LBFGS": [{}, {"line_search_fn": "strong_wolfe"}, {"max_iter": 3, "history_size": 2}],
    "Muon": [{}, {"nesterov": False}, {"weight_decay": 0.0}],
    "NAdam": [{}, DECAY, {**DECAY, "decoupled_weight_decay": True}],
    "RAdam": [{}, DECAY, {**DECAY, "decoupled_weight_decay": True}],
    "RMSprop": [{}, {**DECAY, "momentum": 0.9}, {"momentum": 0.9, "centered": True}],
    "Rprop": [{}],
    "SGD": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, **DECAY},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "nesterov": True, **DECAY},
    ],
}
# Those whose active rows protect steps by itself, unless the backend is plain torch.
KNOWN = {"SGD", "Adam", "AdamW"}
COUPLING = {"Adafactor", "LBFGS", "Muon"}
MOMENTUM = {"exp_avg", "momentum_buffer", "prev"}
AVERAGE = {"ax"}
ACTIVE = {"0": [0, 3], "1": [1], "3": [], "4": [1]}


def classes():
    found = inspect.getmembers(torch.optim, inspect.isclass)
    return {name for name, value in found if issubclass(value, Optimizer)} - {"Optimizer"}


def implementations(name):
    accepted = inspect.signature(getattr(torch.optim, name)).parameters
    yield {}
    if "foreach" in accepted:
        yield {"foreach": True}
    if "fused" in accepted:
        yield {"fused": True}


VARIANTS = [
    pytest.param(name, {**options, **how}, id=f"{name}-{'-'.join({**options, **how})}-{i}")
    for name, choices in OPTIONS.items()
    for i, options in enumerate(choices)
    for how in implementations(name)
]
# Each optimizer, and those that protect knows a second time, with the copies it makes for others.
EVERY_WAY = [
    pytest.param(*variant.values, copied, id=f"{variant.id}{'-copied' if copied else ''}")
    for variant in VARIANTS
    for copied in ([False, True] if variant.values[0] in KNOWN else [False])
]
WITH_ROWS = [variant for variant in EVERY_WAY if variant.values[0] != "LBFGS"]
ELEMENTWISE = [variant for variant in EVERY_WAY if variant.values[0] not in COUPLING]


@pytest.fixture(autouse=True)
def way(request):
    """Rows are copied where a test's parameters say so: as without the extension."""
    variant = getattr(request.node, "callspec", None)
    copied = variant is not None and variant.params.get("copied")
    with neq.backends.use("torch") if copied else nullcontext():
        yield


def make(name, options):
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 4), nn.Linear(4, 3)
    model = neq.convert(nn.Sequential(*layers))
    parameters = [p for p in model.parameters() if name != "Muon" or p.dim() == 2]
    return model, getattr(torch.optim, name)(parameters, **options)


def freeze(model):
    for name, index in ACTIVE.items():
        model.get_submodule(name).set_active(index)


def frozen_parameters(model, optimizer):
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for layer in model.modules():
        if hasattr(layer, "neuron_parameters") and not layer.active.is_full:
            for _, p, _ in layer.neuron_parameters():
                if id(p) in owned:
                    yield p, layer.active


def give_gradients(model, generator):
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    for layer in model.modules():
        if hasattr(layer, "neuron_parameters"):
            for _, p, _ in layer.neuron_parameters():
                p.grad[layer.active.frozen] = 0
                if layer.active.is_empty:
                    p.grad = None


def train(model, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 2, 4, 4, generator=generator)
    y = torch.randn(64, 3, generator=generator)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            give_gradients(model, generator)
            optimizer.step()


def assert_equal(one, other, msg=None):
    assert torch.equal(one, other), msg


def neuron_state(optimizer, p):
    """Copies of the states of p with one slice per neuron; the tests' neurons are rows."""
    return {
        name: value.clone()
        for name, value in optimizer.state[p].items()
        if isinstance(value, torch.Tensor) and value.shape[:1] == p.shape[:1]
        if value.dim() == p.dim()
    }


def test_every_dense_optimizer_is_tested():
    assert set(OPTIONS) == classes() - {"SparseAdam"}, "add the optimizer to OPTIONS and the docs"


@pytest.mark.parametrize(("name", "options", "copied"), EVERY_WAY)
def test_frozen_neurons_are_bit_identical_after_ten_steps(name, options, copied):
    model, optimizer = make(name, options)
    neq.protect(optimizer, model)
    train(model, optimizer, 3)
    freeze(model)
    before = {p: p.detach().clone() for p, _ in frozen_parameters(model, optimizer)}
    assert before
    train(model, optimizer, 10, seed=1)
    for p, active in frozen_parameters(model, optimizer):
        assert torch.equal(p[active.frozen], before[p][active.frozen])
        if p is model[0].bias:
            continue  # the batch norm behind it leaves it a gradient of rounding errors alone
        for row in active.index.tolist():
            assert not torch.equal(p[row], before[p][row]), "an active neuron must still train"


@pytest.mark.parametrize(("name", "options", "copied"), ELEMENTWISE)
def test_active_neurons_move_as_under_the_dense_optimizer(name, options, copied):
    """To the last bit where the optimizer steps them, up to rounding where protect does."""
    knows = neq.backends.resolve("row_sgd", "cpu")[0] == "native"
    agree = torch.testing.assert_close if name in KNOWN and knows else assert_equal
    model, optimizer = make(name, options)
    twin, plain = make(name, options)
    neq.protect(optimizer, model)
    for each, its in ((model, optimizer), (twin, plain)):
        train(each, its, 3)
        freeze(each)
        train(each, its, 10, seed=1)
    for (_, layer), (_, other) in zip(model.named_modules(), twin.named_modules(), strict=True):
        if hasattr(layer, "neuron_parameters"):
            rows = layer.active.index.long()
            for (_, p, _), (_, q, _) in zip(
                layer.neuron_parameters(), other.neuron_parameters(), strict=True
            ):
                agree(p[rows], q[rows])
                for key, value in neuron_state(optimizer, p).items():
                    agree(value[rows], plain.state[q][key][rows], msg=key)


@pytest.mark.parametrize("state", ["hold", "reference", "keep"])
@pytest.mark.parametrize(("name", "options", "copied"), WITH_ROWS)
def test_state_of_frozen_neurons(name, options, copied, state):
    model, optimizer = make(name, options)
    twin, plain = make(name, options)
    neq.protect(optimizer, model, state=state)
    for each, its in ((model, optimizer), (twin, plain)):
        train(each, its, 3)
        freeze(each)
    before = {p: neuron_state(optimizer, p) for p, _ in frozen_parameters(model, optimizer)}
    for each, its in ((model, optimizer), (twin, plain)):
        train(each, its, 10, seed=1)
    others = [q for q, _ in frozen_parameters(twin, plain)]
    decays = plain.param_groups[0].get("weight_decay", 0)
    for (p, active), q in zip(frozen_parameters(model, optimizer), others, strict=True):
        rows = active.frozen
        for key, value in neuron_state(optimizer, p).items():
            if key in MOMENTUM and state != "keep":
                assert not value[rows].any(), key
            elif state != "reference" or key in AVERAGE:
                assert torch.equal(value[rows], before[p][key][rows]), key
            elif not decays and name not in COUPLING:
                assert torch.equal(value[rows], plain.state[q][key][rows]), key


@cache
def states_of(name):
    found = set()
    for options in OPTIONS[name]:
        model, optimizer = make(name, options)
        train(model, optimizer, 2)
        found |= {key for state in optimizer.state.values() for key in state}
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_every_state_has_a_policy(name):
    assert not states_of(name) - set(STATE_POLICY), "add it to STATE_POLICY and docs/protect.md"


def documented():
    """{optimizer: {policy: states}} of the table of docs/protect.md."""
    text = (Path(__file__).parents[1] / "docs" / "protect.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    start = next(i for i, row in enumerate(rows) if row[0] == "optimizer")
    table = {}
    for optimizers, *cells in rows[start + 2 :]:
        for optimizer in optimizers.split(", "):
            names = (cell.replace("`", "").split(", ") for cell in cells)
            table[optimizer] = dict(zip(rows[start][1:], names, strict=True))
    return table


@pytest.mark.parametrize("name", OPTIONS)
def test_the_documented_table_is_what_happens(name):
    expected = defaultdict(set)
    for state in states_of(name):
        expected[STATE_POLICY[state]].add(state)
    columns = {"restarts at zero": "zero", "held": "hold", "averaged": "average", "left": "leave"}
    row = documented()[name]
    assert {columns[c]: set(names) - {""} for c, names in row.items()} == {
        policy: expected[policy] for policy in columns.values()
    }
