"""The tracker against the paper's formulas, rendered in plain Python."""

import math
from itertools import chain, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import neq_kernels as neq
from neq_kernels.equilibrium import Equilibrium
from neq_kernels.equilibrium.selectors import Velocity

EPOCHS = 20
EPSILON = 1e-3


def python_cosine(a, b):
    zeros = not any(a), not any(b)
    if any(zeros):
        return 1.0 if all(zeros) else 0.0
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def python_similarity(a, b, definition):
    """Of one neuron: `a` and `b` hold a list of positions per sample."""
    if definition == "reference":
        cosines = [python_cosine(x, y) for x, y in zip(a, b, strict=True)]
        return math.fsum(cosines) / len(cosines)
    return python_cosine(list(chain(*a)), list(chain(*b)))


def python_velocities(outputs, momentum, definition):
    """v_1, v_2, ... of one neuron from its outputs at t = 0, 1, 2, ..."""
    phi, dphi, v, velocities = 1.0, 0.0, 0.0, []
    for previous, current in pairwise(outputs):
        now = python_similarity(current, previous, definition)
        drift = -momentum * v if definition == "paper" else momentum * v - dphi
        v = (now - phi) + drift
        phi, dphi = now, now - phi
        velocities.append(v)
    return velocities


class Spy(Velocity):
    """Keeps what the selector was shown."""

    def __init__(self, epsilon):
        super().__init__(epsilon)
        self.seen = []

    def __call__(self, scores):
        self.seen.append(scores)
        return super().__call__(scores)


def replay(model, probe, change, momentum, definition):
    """Change the model EPOCHS times; check every velocity and every frozen neuron of each layer."""
    neq.convert(model)
    spy = Spy(EPSILON)
    tracker = Equilibrium(
        model, probe, selector=spy, momentum=momentum, definition=definition, warmup=0, exclude=()
    )
    outputs = {name: [] for name in neq.get_active(model)}
    for epoch in range(EPOCHS + 1):
        if epoch:
            change(epoch)
        for name, rows in neuron_outputs(model, probe).items():
            outputs[name].append(rows)
        tracker.update()
        active = neq.get_active(model)
        for name, history in outputs.items() if epoch else ():
            expected = [
                python_velocities(neuron, momentum, definition)[-1]
                for neuron in zip(*history, strict=True)
            ]
            expected = torch.tensor(expected, dtype=torch.float64)
            shown = spy.seen[-1][name]
            assert shown.epoch == epoch
            torch.testing.assert_close(shown.velocity, expected, rtol=0, atol=1e-6)
            clear = (expected.abs() - EPSILON).abs() > 1e-6
            frozen = ~active[name].mask()
            assert torch.equal(frozen[clear], (expected.abs() < EPSILON)[clear])


def neuron_outputs(model, probe):
    """Per layer and neuron, what it puts out over the whole probe: a list of positions a sample.
    A scalar per sample, as in [B, C], makes a single list of all samples."""
    taken = {}

    def keep(name, axis):
        def hook(module, arguments, output):
            scalars = output.dim() == 2
            output = output[None] if scalars else output
            rows = output.double().movedim(axis, 0).flatten(2).tolist()
            known = taken.setdefault(name, [[] for _ in rows])
            for neuron, samples in zip(known, rows, strict=True):
                if scalars and neuron:
                    neuron[0] += samples[0]
                else:
                    neuron += samples

        return hook

    layers = [(n, m) for n, m in model.named_modules() if n in neq.get_active(model)]
    handles = [
        m.register_forward_hook(keep(n, -1 if isinstance(m, (nn.Linear, nn.LayerNorm)) else 1))
        for n, m in layers
    ]
    with torch.no_grad():
        model.eval()
        for batch in probe:
            model(batch)
    for handle in handles:
        handle.remove()
    return taken


@pytest.mark.parametrize("definition", ["paper", "reference"])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.5])
def test_random_walk_of_a_conv_net(momentum, definition):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Conv2d(4, 3, 1), nn.Flatten(2),
        nn.Linear(4, 5), nn.LayerNorm(5),
    )  # fmt: skip

    def change(epoch):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter) * 10 ** -(epoch / 5)

    replay(model, list(torch.randn(2, 3, 2, 4, 4)), change, momentum, definition)


EVENTS = {
    "same": lambda row, fresh: row,
    "zero": lambda row, fresh: row * 0,
    "opposite": lambda row, fresh: -row,
    "nudge": lambda row, fresh: row + 1e-3 * fresh,
    "large": lambda row, fresh: row * 1e6,
    "small": lambda row, fresh: row * 1e-6,
    "fresh": lambda row, fresh: fresh,
}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(sorted(EVENTS)), min_size=3, max_size=3),
        min_size=EPOCHS,
        max_size=EPOCHS,
    ),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from(["paper", "reference"]),
    st.sampled_from([(5, 4), (1, 4), (3, 2, 4), (1, 1, 4), (2, 1, 4)]),
)
def test_adversarial_sequences(events, momentum, definition, shape):
    layer = nn.Linear(4, 3, bias=False)
    generator = torch.Generator().manual_seed(0)

    def change(epoch):
        fresh = torch.randn(3, 4, generator=generator)
        rows = [
            EVENTS[e](*pair)
            for e, *pair in zip(events[epoch - 1], layer.weight, fresh, strict=True)
        ]
        with torch.no_grad():
            layer.weight.copy_(torch.stack(rows).clamp(-1e15, 1e15))

    probe = [torch.randn(shape, generator=generator)]
    replay(nn.Sequential(layer), probe, change, momentum, definition)


LAYERS = {
    "Linear": (lambda: nn.Linear(4, 3), [(2, 2, 3, 4), (1, 1, 1, 4)]),
    "Conv2d": (lambda: nn.Conv2d(2, 3, 2), [(3, 2, 3, 3), (1, 2, 3, 3), (3, 2, 2, 2)]),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3), [(3, 3, 2, 2), (1, 3, 2, 2), (3, 3, 1, 1)]),
    "LayerNorm": (lambda: nn.LayerNorm(3), [(4, 3), (1, 3), (2, 3, 3), (2, 1, 3)]),
}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(sorted(EVENTS)), min_size=3, max_size=3),
        min_size=EPOCHS,
        max_size=EPOCHS,
    ),
    st.sampled_from(["paper", "reference"]),
    st.sampled_from([(kind, shape) for kind, (_, shapes) in LAYERS.items() for shape in shapes]),
)
def test_adversarial_sequences_of_every_kind_of_layer(events, definition, kind_and_shape):
    """Weight and bias of a neuron meet the same event; one sample and one position among them."""
    kind, shape = kind_and_shape
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layer = LAYERS[kind][0]()

    def change(epoch):
        with torch.no_grad():
            for parameter in (layer.weight, layer.bias):
                fresh = torch.randn(parameter.shape, generator=generator)
                rows = [
                    EVENTS[e](row, new)
                    for e, row, new in zip(events[epoch - 1], parameter, fresh, strict=True)
                ]
                parameter.copy_(torch.stack(rows).clamp(-1e12, 1e12))

    probe = [torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)]
    replay(nn.Sequential(layer), probe, change, 0.5, definition)


def test_paper_example_by_hand():
    """phi = 1, cos 60, cos 60, 1: v = 0, -.5, .25, .375 with mu = .5."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    neq.convert(model)
    spy = Spy(EPSILON)
    tracker = Equilibrium(model, [torch.eye(2)], selector=spy, warmup=0, exclude=())
    for degrees in (0, 0, 60, 120, 120):
        angle = math.radians(degrees)
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[math.cos(angle), math.sin(angle)]]))
        tracker.update()
    velocities = [round(scores["0"].velocity.item(), 6) for scores in spy.seen]
    assert velocities == [0, -0.5, 0.25, 0.375]
    assert [scores["0"].parameters for scores in spy.seen] == [2] * 4
