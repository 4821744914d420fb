"""Two gloo processes: layers that freeze and thaw answer DDP's reducer, and gradients are right.

The reducer waits for every parameter, so that a layer that gives it none shows as an error at the
next forward. No test here asks for find_unused_parameters.
"""

from collections import namedtuple
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch
from ranks import Ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import neq_kernels as neq
from neq_kernels.convert import converted_layers


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    ranks = Ranks(tmp_path_factory.mktemp("ddp"))
    yield ranks
    ranks.stop()


def mlp():
    return nn.Sequential(
        nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 5), nn.RMSNorm(5), nn.Linear(5, 3)
    )


def convnet():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.block = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        self.head = nn.Linear(6, 3)
        self.reentrant = reentrant

    def forward(self, x):
        x = checkpoint(self.block, self.first(x), use_reentrant=self.reentrant)
        return self.head(x)


MODELS = {
    "mlp": mlp,
    "convnet": convnet,
    "checkpointed": lambda: Checkpointed(False),
    "reentrant": lambda: Checkpointed(True),
}


def build(kind, propagate="all"):
    torch.manual_seed(0)
    return neq.convert(MODELS[kind](), propagate=propagate)


def data(rank, step):
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(10 * step + rank))


def script(kind):
    """Sets for one step after another: prefixes, suffixes, single layers, all, and thawing."""
    names = list(converted_layers(build(kind)))
    everything = {name: [] for name in names}
    steps = [{}, {name: [1, 2] for name in names}]
    steps += [{name: [] for name in names[: i + 1]} for i in range(len(names) - 1)]
    steps += [{}]
    steps += [{name: []} for name in names]
    steps += [{name: [] for name in names[2:]}, everything, {names[0]: [0]}, everything, {}]
    return steps


def choose(model, sets):
    neq.set_active(model, {name: sets.get(name) for name in converted_layers(model)})


def gradients(model):
    """By parameter; what has none counts as zero, as DDP's reducer sees it."""
    return {
        name.removeprefix("module."): torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def descend(model, learning_rate=0.05):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= learning_rate * parameter.grad


def train(rank, kind, propagate, steps, options):
    """The gradients of every step of a DDP training, and the parameters after it."""
    model = build(kind, propagate)
    ddp = DistributedDataParallel(model, **options)
    seen = []
    for step, sets in enumerate(steps):
        choose(model, sets)
        model.zero_grad()
        ddp(data(rank, step)).square().mean().backward()
        seen.append(gradients(model))
        descend(model)
    return seen, {name: p.detach() for name, p in model.named_parameters()}


def train_alone(kind, propagate, steps):
    """The same in one process: the mean of both ranks' gradients."""
    model, seen = build(kind, propagate), []
    for step, sets in enumerate(steps):
        choose(model, sets)
        both = []
        for rank in range(2):
            model.zero_grad()
            loss = model(data(rank, step)).square().mean()
            if loss.requires_grad:
                loss.backward()
            both.append(gradients(model))
        seen.append({name: (both[0][name] + both[1][name]) / 2 for name in both[0]})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter -= 0.05 * seen[-1][name]
    return seen


def assert_identical(first, second):
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def assert_trained_right(ranks, kind, propagate="all", steps=None, **options):
    steps = script(kind) if steps is None else steps
    (first, weights), (second, other_weights) = ranks.run(train, kind, propagate, steps, options)
    assert_identical(weights, other_weights)
    expected = train_alone(kind, propagate, steps)
    layers = converted_layers(build(kind))
    for step, sets in enumerate(steps):
        assert_identical(first[step], second[step])
        torch.testing.assert_close(first[step], expected[step], rtol=1e-4, atol=1e-6)
        for name, chosen in sets.items():
            for own, parameter, _ in layers[name].neuron_parameters():
                frozen = torch.ones(len(parameter), dtype=torch.bool)
                frozen[chosen] = False
                assert (first[step][f"{name}.{own}"][frozen] == 0).all()


@pytest.mark.parametrize("propagate", ["all", "active"])
@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_layers_and_prefixes_freeze_and_thaw(ranks, kind, propagate):
    assert_trained_right(ranks, kind, propagate)


@pytest.mark.parametrize("propagate", ["all", "active"])
def test_checkpointed_blocks_freeze_and_thaw(ranks, propagate):
    assert_trained_right(ranks, "checkpointed", propagate)


def test_reentrant_checkpoints_freeze_and_thaw(ranks):
    """They need an input with a gradient, so that the layer before them must not freeze whole."""
    steps = [{name: sets[name] for name in sets if name != "first"} for sets in script("reentrant")]
    assert_trained_right(ranks, "reentrant", steps=steps)


def test_gradients_as_views_of_the_buckets(ranks):
    assert_trained_right(ranks, "mlp", gradient_as_bucket_view=True)


def test_many_small_buckets(ranks):
    assert_trained_right(ranks, "convnet", bucket_cap_mb=1e-5)


def test_static_graph_while_the_graph_is_static(ranks):
    """static_graph promises DDP that the same parameters take part in every step."""
    assert_trained_right(ranks, "mlp", steps=[{"0": [], "3": [1]}] * 4, static_graph=True)


def accumulate(rank, synchronise_last_only):
    model = build("mlp")
    ddp = DistributedDataParallel(model)
    seen = []
    for sets in ({}, {"0": [], "1": []}, {"3": []}, {}):
        choose(model, sets)
        model.zero_grad()
        for micro in range(3):
            quiet = synchronise_last_only and micro < 2
            with ddp.no_sync() if quiet else nullcontext():
                ddp(data(rank, micro)).square().mean().backward()
        seen.append(gradients(model))
    return seen


def test_accumulation_without_synchronising(ranks):
    quiet, other = ranks.run(accumulate, True)
    always, _ = ranks.run(accumulate, False)
    for step, expected in enumerate(always):
        assert_identical(quiet[step], other[step])
        torch.testing.assert_close(quiet[step], expected, rtol=1e-4, atol=1e-6)


Pair = namedtuple("Pair", "logits hidden")


@dataclass(frozen=True)
class Output:
    logits: Tensor
    hidden: Tensor
    labels: Tensor
    loss: Tensor | None = None


@dataclass
class Derived:
    logits: Tensor
    hidden: Tensor
    total: Tensor = field(init=False)

    def __post_init__(self):
        self.total = self.logits + 1


CONTAINERS = {
    "dict": lambda y, h: {"logits": y, "hidden": h, "names": ["a"]},
    "tuple": lambda y, h: (y, h, torch.tensor([1]), None),
    "nested list": lambda y, h: [[y], {"hidden": [h]}],
    "named tuple": lambda y, h: Pair(y, h),
    "frozen dataclass": lambda y, h: Output(y, h, torch.tensor([1])),
    "dataclass with a derived field": lambda y, h: Derived(y, h),
}
LOGITS = {
    "dict": lambda output: output["logits"],
    "tuple": lambda output: output[0],
    "nested list": lambda output: output[0][0],
    "named tuple": lambda output: output.logits,
    "frozen dataclass": lambda output: output.logits,
    "dataclass with a derived field": lambda output: output.logits,
}


class Wrapped(nn.Module):
    def __init__(self, container):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.container = container

    def forward(self, x):
        hidden = self.body(x).relu()
        return CONTAINERS[self.container](self.head(hidden), hidden)


def train_container(rank, container):
    model = neq.convert(Wrapped(container))
    ddp = DistributedDataParallel(model)
    for sets in ({"body": []}, {"head": []}, {"body": [], "head": []}, {}):
        choose(model, sets)
        model.zero_grad()
        output = ddp(data(rank, 0))
        assert type(output) is type(CONTAINERS[container](torch.zeros(1), torch.zeros(1)))
        LOGITS[container](output).square().mean().backward()
    return gradients(model)


@pytest.mark.parametrize("container", CONTAINERS)
def test_outputs_in_containers(ranks, container):
    first, second = ranks.run(train_container, container)
    assert_identical(first, second)
    assert all(grad.any() for grad in first.values())


class Counted(torch.autograd.Function):
    runs = 0

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        Counted.runs += 1
        return grad


def run_frozen_prefix(rank, propagate):
    model = neq.convert(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), propagate=propagate)
    model[0].register_forward_hook(lambda module, inputs, output: Counted.apply(output))
    ddp = DistributedDataParallel(model)
    counts = []
    for sets in ({}, {"0": []}, {"0": [1]}):
        choose(model, sets)
        Counted.runs = 0
        ddp(data(rank, 0)).sum().backward()
        counts.append(Counted.runs)
    return counts


@pytest.mark.parametrize("propagate", ["all", "active"])
def test_a_frozen_prefix_runs_no_backward(ranks, propagate):
    assert ranks.run(run_frozen_prefix, propagate) == ([1, 0, 1], [1, 0, 1])


def train_converted_inside(rank, where):
    """Converting the wrapped module, or the wrapper, once DDP is made."""
    torch.manual_seed(0)
    model = mlp()
    ddp = DistributedDataParallel(model)
    neq.convert(model if where == "module" else ddp)
    for step, sets in enumerate(({}, {"0": [], "1": []}, {"3": []}, {})):
        choose(model, sets)
        model.zero_grad()
        ddp(data(rank, step)).square().mean().backward()
    return gradients(model)


@pytest.mark.parametrize("where", ["module", "wrapper"])
def test_converting_after_ddp_was_made(ranks, where):
    first, second = ranks.run(train_converted_inside, where)
    assert_identical(first, second)


def train_part(rank):
    """A converted part of a model that is wrapped as a whole."""
    torch.manual_seed(0)
    model = mlp()
    body = nn.Sequential(*model[:3])
    whole = nn.Sequential(neq.convert(body), *model[3:])
    ddp = DistributedDataParallel(whole)
    for step, sets in enumerate(({}, {"0": [], "1": []}, {"1": []}, {})):
        choose(body, sets)
        whole.zero_grad()
        ddp(data(rank, step)).square().mean().backward()
    return gradients(whole)


def test_a_converted_part_of_a_wrapped_model(ranks):
    first, second = ranks.run(train_part)
    assert_identical(first, second)


def train_compiled(rank, outside):
    model = build("mlp")
    run = DistributedDataParallel(model)
    if outside:
        run = torch.compile(run, backend="aot_eager")
    else:
        model.compile(backend="aot_eager")
    seen = []
    for step, sets in enumerate(({}, {"0": [], "1": []}, {"3": []}, {})):
        choose(model, sets)
        model.zero_grad()
        run(data(rank, step)).square().mean().backward()
        seen.append(gradients(model))
    return seen


@pytest.mark.parametrize("outside", [True, False], ids=["compile(DDP)", "DDP(compiled)"])
def test_compiled_layers_freeze_and_thaw(ranks, outside):
    first, second = ranks.run(train_compiled, outside)
    for mine, other in zip(first, second, strict=True):
        assert_identical(mine, other)
    assert not first[1]["0.weight"].any()
    assert first[3]["0.weight"].any()
