import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import neq_kernels as neq
from neq_kernels.convert import converted_layers

pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo", "device"),
    # Dynamo itself makes one when it traces any autograd.Function.
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated"),
    # Inductor scripts a module of its own when first imported.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated"),
]


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


class Deep(nn.Module):
    """24 layers of every kind: convolutions dense, grouped and depthwise, norms, linears."""

    def __init__(self):
        super().__init__()
        blocks = [nn.Conv2d(3, 8, 3, padding=1)]
        for groups in (1, 2, 4, 8):
            blocks += [nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, groups=groups)]
        blocks += [nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, stride=2, padding="valid", dilation=2)]
        self.convolutions = nn.ModuleList(blocks)
        self.linears = nn.ModuleList([nn.Linear(12, 10), nn.LayerNorm(10)])
        for _ in range(5):
            self.linears.extend([nn.Linear(10, 10), nn.LayerNorm(10)])
        self.head = nn.Linear(10, 5, bias=False)

    def forward(self, x):
        for layer in self.convolutions:
            x = layer(x)
            if isinstance(layer, nn.BatchNorm2d):
                x = F.relu(x)
        x = x.mean((2, 3))
        for layer in self.linears:
            x = layer(x)
            if isinstance(layer, nn.LayerNorm):
                x = F.gelu(x)
        return self.head(x)


def shallow():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(6),
        nn.Linear(6, 5),
    )


def batch(size=4, width=10):
    return torch.randn(size, 3, width, width)


def draw_sets(model, draw):
    """Every layer all, some or none active, drawn anew."""
    sets = {}
    for name, layer in converted_layers(model).items():
        chosen = draw.choice(["all", "some", "none"])
        count = {"all": layer.size, "none": 0}.get(chosen, draw.randrange(1, layer.size))
        sets[name] = draw.sample(range(layer.size), count)
    neq.set_active(model, sets)


def gradients(model, run, x):
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    # Eager, a network cut off from its output has no graph; compiled it gives zeros.
    if y.requires_grad:
        y.square().sum().backward()
    return y.detach(), x.grad, {name: p.grad for name, p in model.named_parameters()}


def assert_same_gradients(model, compiled, eager, tolerance=1e-4):
    """Compiled and eager agree; None, which eager gives for layers frozen whole, counts as zero."""
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(compiled[0], eager[0], **close)
    for got, expected in [(compiled[1], eager[1])] + [
        (compiled[2][name], grad) for name, grad in eager[2].items()
    ]:
        filled = [g for g in (got, expected) if g is not None]
        zero = torch.zeros_like(filled[0]) if filled else None
        if filled:
            torch.testing.assert_close(
                zero if got is None else got, zero if expected is None else expected, **close
            )
    for layer in converted_layers(model).values():
        for _, parameter, dim in layer.neuron_parameters():
            if parameter.grad is not None:
                rows = parameter.grad.index_select(dim, layer.active.frozen.to(parameter.device))
                assert (rows == 0).all()


@pytest.mark.parametrize("propagate", ["all", "active"])
def test_changes_of_24_sets_compile_once_and_match_eager(propagate):
    model = neq.convert(Deep(), propagate=propagate)
    assert len(converted_layers(model)) == 24
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    draw = random.Random(0)
    for _ in range(24):
        draw_sets(model, draw)
        x = batch()
        state = {name: b.clone() for name, b in model.named_buffers()}
        got = gradients(model, compiled, x)
        model.load_state_dict(state, strict=False)
        assert_same_gradients(model, got, gradients(model, model, x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("propagate", ["all", "active"])
def test_inductor_compiles_once_and_matches_eager(propagate):
    model = neq.convert(shallow(), propagate=propagate)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    draw = random.Random(1)
    for _ in range(4):
        draw_sets(model, draw)
        x = batch(4, 8)
        assert_same_gradients(model, gradients(model, compiled, x), gradients(model, model, x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("active", [[], [1], None], ids=["none", "some", "all"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(4, 3),
        lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 1), nn.Flatten()),
        lambda: nn.LayerNorm(4),
        lambda: nn.BatchNorm1d(4),
    ],
    ids=["Linear", "Conv2d", "LayerNorm", "BatchNorm1d"],
)
def test_a_set_changed_between_forward_and_backward_raises(make, active):
    model = neq.convert(make())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 4, requires_grad=True)
    (name,) = neq.get_active(model)
    neq.set_active(model, {name: [0]})
    compiled(x).sum().backward()
    y = compiled(x)
    neq.set_active(model, {name: active})
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|active set"):
        y.sum().backward()
    compiled(x).sum().backward()


def test_autocast_around_and_inside():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 6))

        def forward(self, x):
            with torch.autocast(x.device.type, torch.bfloat16):
                return self.net(x).float()

    inside = neq.convert(Inside())
    counter = CompileCounterWithBackend("aot_eager")
    compiled_inside = torch.compile(inside, backend=counter, fullgraph=True)
    compiled_net = torch.compile(inside.net, backend=counter, fullgraph=True)

    def around(run):
        def forward(x):
            with torch.autocast(x.device.type, torch.bfloat16):
                return run(x).float()

        return forward

    x, draw = batch(3, 4), random.Random(2)
    for _ in range(3):
        draw_sets(inside, draw)
        eager = gradients(inside, inside, x)
        assert_same_gradients(inside, gradients(inside, compiled_inside, x), eager, 2e-2)
        assert_same_gradients(inside, gradients(inside, around(compiled_net), x), eager, 2e-2)
    assert counter.frame_count == 2
    assert all(p.grad.dtype == torch.float32 for p in inside.parameters() if p.grad is not None)


def test_dynamic_batch_sizes_compile_once():
    model = neq.convert(shallow())
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    draw = random.Random(3)
    for size in (4, 7, 5, 12):
        draw_sets(model, draw)
        x = batch(size)
        torch._dynamo.mark_dynamic(x, 0)
        model.zero_grad()
        got = compiled(x)
        got.square().sum().backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        _, _, expected = gradients(model, model, x)
        for name, grad in expected.items():
            if grad is not None:
                torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.parametrize("propagate", ["all", "active"])
def test_channels_last_compiles_once_and_keeps_the_strides(propagate):
    model = neq.convert(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2)),
        propagate=propagate,
    ).to(memory_format=torch.channels_last)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    draw = random.Random(4)
    for _ in range(3):
        draw_sets(model, draw)
        x = batch(2, 6).to(memory_format=torch.channels_last)
        got = gradients(model, compiled, x)
        for name, parameter in model.named_parameters():
            assert got[2][name].stride() == parameter.stride()
        assert_same_gradients(model, got, gradients(model, model, x))
    assert counter.frame_count == 1


def test_eager_forwards_in_between_recompile_nothing():
    """What a tracker does after every epoch: eval, eager, hooks on the layers, new sets."""
    model = neq.convert(shallow())
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    draw, seen = random.Random(5), []
    for _ in range(3):
        compiled(batch()).sum().backward()
        handles = [
            layer.register_forward_hook(lambda *_: seen.append(1))
            for layer in converted_layers(model).values()
        ]
        model.eval()
        with torch.no_grad():
            model(batch())
        model.train()
        for handle in handles:
            handle.remove()
        draw_sets(model, draw)
    assert len(seen) == 15
    assert counter.frame_count == 1


@pytest.mark.parametrize("in_place", [False, True], ids=["torch.compile", "Module.compile"])
def test_the_first_eager_forward_recompiles_nothing(in_place):
    model = neq.convert(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)))
    counter = CompileCounterWithBackend("aot_eager")
    x = torch.randn(2, 4)
    if in_place:
        model.compile(backend=counter, fullgraph=True)
        compiled = model
    else:
        compiled = torch.compile(model, backend=counter, fullgraph=True)
    compiled(x).sum().backward()
    with torch.compiler.set_stance("force_eager"):
        model(x)
    for sets in ([0], [], None):
        neq.set_active(model, {"0": sets})
        compiled(x).sum().backward()
    assert counter.frame_count == 1


def test_converting_after_the_first_eager_forward_and_compiling_then():
    model = neq.convert(shallow())
    model(batch())
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    draw = random.Random(6)
    for _ in range(4):
        draw_sets(model, draw)
        compiled(batch()).sum().backward()
        model(batch())
    assert counter.frame_count == 1


def test_an_all_active_model_computes_what_the_plain_one_computes():
    plain = shallow()
    model = neq.convert(shallow())
    model.load_state_dict(plain.state_dict())
    x = batch()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same_gradients(model, gradients(model, compiled, x), gradients(plain, plain, x))


def test_a_compiled_layer_on_its_own_and_a_compiled_block():
    model = neq.convert(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    counter = CompileCounterWithBackend("aot_eager")
    model[0].compile(backend=counter, fullgraph=True)
    x, draw = torch.randn(5, 4), random.Random(7)
    for _ in range(6):
        draw_sets(model, draw)
        got = gradients(model, model, x)
        with torch.compiler.set_stance("force_eager"):
            assert_same_gradients(model, got, gradients(model, model, x))
    assert counter.frame_count == 1


def test_training_compiled_follows_training_eager():
    def train(compile_it):
        torch.manual_seed(0)
        model = neq.convert(shallow())
        run = torch.compile(model, backend="aot_eager", fullgraph=True) if compile_it else model
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        draw = random.Random(8)
        for _ in range(5):
            draw_sets(model, draw)
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            optimizer.zero_grad()
            run(batch()).square().mean().backward()
            optimizer.step()
            for name, layer in converted_layers(model).items():
                for own, p, dim in layer.neuron_parameters():
                    frozen = layer.active.frozen.to(p.device)
                    still = p.index_select(dim, frozen)
                    was = before[f"{name}.{own}"].index_select(dim, frozen)
                    assert torch.equal(still, was)
        return model.state_dict()

    eager, compiled = train(False), train(True)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


def test_export_after_revert():
    model = neq.convert(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    neq.set_active(model, {"0": [1]})
    x = torch.randn(5, 4)
    expected = model(x)
    exported = torch.export.export(neq.revert(model), (x,))
    torch.testing.assert_close(exported.module()(x), expected)
    assert not any("neq_kernels" in str(node.target) for node in exported.graph.nodes)
