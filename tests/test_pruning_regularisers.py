"""SeReNe and LOBSTER against their formulas, written as loops in fp64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import neq_kernels as neq
from neq_kernels.pruning import LOBSTER, SeReNe, set_masks

pytestmark = pytest.mark.usefixtures("one_thread")
STRENGTH = 0.1


class Net(nn.Module):
    """A convolution, a functional activation in place or not, and two Linears."""

    def __init__(self, activation, norm=False):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.hidden = nn.Linear(12, 5)
        self.head = nn.Linear(5, 4)
        self.activation = activation

    def forward(self, x):
        x = self.activation(F.avg_pool2d(self.norm(self.conv(x)), 2))
        return self.head(self.activation(self.hidden(x.flatten(1))))


ACTIVATIONS = {
    "relu": F.relu,
    "relu in place": lambda x: F.relu(x, inplace=True),
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def make(activation="relu", norm=False, dtype=torch.float64):
    torch.manual_seed(0)
    return Net(ACTIVATIONS[activation], norm).to(dtype), torch.randn(3, 2, 6, 6, dtype=dtype)


def by_classes(model, x, variant):
    """S of each layer: per sample one derivative after the other, absolute values, then means."""
    found = {}
    for name in ("conv", "hidden", "head"):
        layer, total = getattr(model, name), 0
        for sample in x:
            potentials = []
            hook = layer.register_forward_hook(
                lambda m, a, o, p=potentials: p.append(o) or o.clone()
            )
            y = model(sample[None])
            hook.remove()
            rows = [torch.autograd.grad(v, potentials[0], retain_graph=True)[0] for v in y[0]]
            terms = [r.abs() for r in rows] if variant == "full" else [sum(rows).abs()]
            s = sum(terms)[0] / len(rows)
            total = total + (s.mean((1, 2)) if s.dim() == 3 else s)
        found[name] = total / len(x)
    return found


def by_activation(model, x, activation):
    """The derivative of the activation at its own input, one scalar at a time."""
    found, inputs = {}, []
    model.activation = lambda z: inputs.append(z.detach().clone()) or ACTIVATIONS[activation](z)
    model(x)
    for name, z in zip(("conv", "hidden"), inputs, strict=True):
        z = z.movedim(1, 0).flatten(1)
        slopes = torch.zeros_like(z)
        for i, row in enumerate(z):
            for j, value in enumerate(row):
                p = value.clone().requires_grad_()
                (slopes[i, j],) = torch.autograd.grad(ACTIVATIONS[activation](p * 1), p)
        found[name] = slopes.abs().mean(1)
    return {**found, "head": torch.ones(4, dtype=torch.float64)}


def expected_weight(weight, s):
    wanted = weight.detach().clone()
    for i in range(len(wanted)):
        wanted[i] -= STRENGTH * wanted[i] * max(0.0, 1 - float(s[i]))
    return wanted


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("variant", ["full", "lower_bound", "local"])
def test_serene_is_its_formula(variant, activation):
    model, x = make(activation)
    if variant == "local":
        wanted = by_activation(model, x, activation)
        model.activation = ACTIVATIONS[activation]
    else:
        wanted = by_classes(model, x, variant)
    weights = {n: expected_weight(getattr(model, n).weight, s) for n, s in wanted.items()}
    biases = {n: getattr(model, n).bias.detach().clone() for n in wanted}
    with SeReNe(model, STRENGTH, variant) as serene:
        model(x)
        for name, s in serene.sensitivities().items():
            torch.testing.assert_close(s, wanted[name], rtol=1e-12, atol=1e-14)
        serene.step()
    for name, weight in weights.items():
        torch.testing.assert_close(getattr(model, name).weight, weight, rtol=1e-12, atol=0)
        assert torch.equal(getattr(model, name).bias, biases[name])


@pytest.mark.parametrize("memory", [1, 400, 10**9])
def test_full_does_not_depend_on_its_chunks(memory):
    model, x = make("gelu", norm=True)
    with SeReNe(model, STRENGTH, "full") as whole, SeReNe(model, 0, "full", memory=memory) as parts:
        model(x)
        for name, s in whole.sensitivities().items():
            torch.testing.assert_close(s, parts.sensitivities()[name], rtol=1e-12, atol=0)


def test_full_keeps_to_its_memory(monkeypatch):
    model, x = make("gelu")
    passes, grad = [], torch.autograd.grad

    def weighed(*arguments, **keywords):
        found = grad(*arguments, **keywords)
        passes.append(sum(g.numel() * g.element_size() for g in found))
        return found

    monkeypatch.setattr(torch.autograd, "grad", weighed)
    with SeReNe(model, STRENGTH, "full", memory=1):
        model(x)
    each = passes[0]
    assert passes == [each] * 4
    passes.clear()
    with SeReNe(model, STRENGTH, "full", memory=3 * each + 8):
        model(x)
    assert passes == [3 * each, each]


@pytest.mark.parametrize("variant", ["full", "lower_bound", "local"])
def test_micro_batches_average_to_the_batch(variant):
    model, x = make("tanh")
    with SeReNe(model, STRENGTH, variant) as serene:
        model(x)
        whole = serene.sensitivities()
        serene.step()
    model, _ = make("tanh")
    with SeReNe(model, STRENGTH, variant) as serene:
        for sample in x:
            model(sample[None]).sum().backward()
        for name, s in serene.sensitivities().items():
            torch.testing.assert_close(s, whole[name])


def test_serene_measures_in_training_with_gradients_only_and_goes():
    model, x = make()
    serene = SeReNe(model, STRENGTH)
    with torch.no_grad():
        model(x)
    model.eval()(x)
    with pytest.raises(RuntimeError, match="forward of the model in training mode"):
        serene.step()
    serene.close()
    model.train()(x)
    assert not serene.sensitivities()
    assert not model._forward_hooks
    assert not model.conv._forward_hooks


def test_channels_last_and_residual_sums():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            self.inner = F.relu(self.norm(self.a(x)))
            self.outer = F.relu(self.b(self.inner) + x)
            return self.outer.mean((2, 3))

    block = Block().to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    with SeReNe(block, STRENGTH, "local") as serene:
        block(x)
        s = serene.sensitivities()
    torch.testing.assert_close(s["a"], (block.inner > 0).float().mean((0, 2, 3)))
    torch.testing.assert_close(s["b"], (block.outer > 0).float().mean((0, 2, 3)))


@pytest.mark.parametrize("kind", ["full", "lower_bound", "local", "lobster"])
def test_channels_last_is_the_same(kind):
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model, x = make("silu", norm=True)
        model.to(memory_format=memory_format)
        regulariser = (
            LOBSTER(model, STRENGTH) if kind == "lobster" else SeReNe(model, STRENGTH, kind)
        )
        with regulariser:
            model(x.contiguous(memory_format=memory_format)).square().sum().backward()
            regulariser.step()
        assert model.conv.weight.is_contiguous(memory_format=memory_format)
        found.append([p.detach() for p in model.parameters()])
    before = list(make("silu", norm=True)[0].parameters())
    assert not torch.equal(found[0][0], before[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_no_activation_to_be_found_is_an_error():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.value = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.value(x) * torch.sigmoid(self.gate(x))

    model = Gated()
    with (
        SeReNe(model, STRENGTH, "local"),
        pytest.raises(RuntimeError, match=r"behind layer 'value'.*MulBackward0.*exclude"),
    ):
        model(torch.randn(2, 3))
    with SeReNe(model, STRENGTH, "local", exclude="value") as serene:
        model(torch.randn(2, 3))
        assert list(serene.sensitivities()) == ["gate"]


def test_outputs_must_be_scores_or_be_made_so():
    model = nn.Linear(3, 4)
    with SeReNe(model, STRENGTH), pytest.raises(RuntimeError, match="outputs: expected a diff"):
        model(torch.randn(2, 5, 3))
    with SeReNe(model, STRENGTH, "full", outputs=lambda y: y.flatten(0, 1)) as serene:
        model(torch.randn(2, 5, 3))
        torch.testing.assert_close(serene.sensitivities()[""], torch.full((4,), 0.25))


@pytest.mark.parametrize("layer", [
    nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Conv2d(4, 6, 3, groups=2), nn.Conv1d(4, 6, 3),
])  # fmt: skip
def test_each_neurons_weights_shrink(layer):
    x = torch.randn(2, 4, *(7,) * (layer.weight.dim() - 2))
    net = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    with torch.no_grad():
        net(x)
    out = layer(x).detach()
    with SeReNe(net, STRENGTH, "local") as serene:
        net(x)
        s = serene.sensitivities()["0"]
        serene.step()
    # A layer's output is linear in each neuron's weights.
    shrunk = layer(x).detach() - layer.bias.detach().view(-1, *(1,) * (out.dim() - 2))
    before = out - layer.bias.detach().view(-1, *(1,) * (out.dim() - 2))
    ratio = 1 - STRENGTH * (1 - s).clamp(min=0)
    torch.testing.assert_close(shrunk, before * ratio.view(-1, *(1,) * (out.dim() - 2)))


def expected_lobster(p):
    w, g = p.detach().clone().flatten(), p.grad.flatten()
    for i in range(len(w)):
        w[i] -= STRENGTH * w[i] * max(0.0, 1 - abs(float(g[i])))
    return w.view_as(p)


def test_lobster_is_its_formula_biases_and_norms_included():
    model, x = make(norm=True)
    lobster = LOBSTER(model, STRENGTH)
    for part in x.split(1):
        model(torch.cat([part, part])).square().sum().backward()
    assert any((p.grad.abs() > 1).any() for p in model.parameters())
    wanted = {name: expected_lobster(p) for name, p in model.named_parameters()}
    lobster.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), wanted[name], rtol=1e-12, atol=0)


def test_lobster_needs_gradients_and_leaves_overflows_alone():
    model, x = make()
    lobster = LOBSTER(model, STRENGTH)
    with pytest.raises(RuntimeError, match="before zero_grad"):
        lobster.step()
    model(x).sum().backward()
    with torch.no_grad():
        model.head.weight.grad[0] = torch.nan
        model.head.weight.grad[1] = torch.inf
    before = model.head.weight.detach().clone()
    lobster.step()
    assert torch.equal(model.head.weight[:2], before[:2])
    assert model.head.weight.isfinite().all()


@pytest.mark.parametrize("make_optimizer", [
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, 0.1),
], ids=["SGD", "AdamW"])  # fmt: skip
@pytest.mark.parametrize("kind", ["full", "lower_bound", "local", "lobster"])
def test_pruned_stays_zero_and_frozen_stays_put(kind, make_optimizer):
    model, x = make(norm=True, dtype=torch.float32)
    neq.convert(model)
    kept = torch.ones_like(model.conv.weight, dtype=torch.bool)
    kept[0], kept[1, 0] = False, False
    with torch.no_grad():
        model.conv.weight.mul_(kept)
    set_masks(model, {"conv.weight": kept})
    neq.set_active(model, {"hidden": [0, 1]})
    optimizer = make_optimizer(model.parameters())
    neq.protect(optimizer, model)
    before = model.hidden.weight.detach().clone()
    regulariser = LOBSTER(model, STRENGTH) if kind == "lobster" else SeReNe(model, STRENGTH, kind)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        regulariser.step()
    regulariser.close()
    assert not model.conv.weight[~kept].any()
    assert model.conv.weight[kept].all()
    assert torch.equal(model.hidden.weight[2:], before[2:])
    assert not torch.equal(model.hidden.weight[:2], before[:2])


@pytest.mark.parametrize("kind", ["full", "lower_bound", "local", "lobster"])
def test_grad_scaler_and_autocast(kind):
    model, x = make(dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    regulariser = LOBSTER(model, STRENGTH) if kind == "lobster" else SeReNe(model, STRENGTH, kind)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).float().square().mean()
    scaler.scale(loss).backward()
    if kind != "lobster":
        found = regulariser.sensitivities()
    scaler.step(optimizer)
    scaler.update()
    if kind == "lobster":
        wanted = {n: expected_lobster(p) for n, p in model.named_parameters()}
    else:
        wanted = {
            f"{n}.weight": expected_weight(model.get_submodule(n).weight, s)
            for n, s in found.items()
        }
    regulariser.step()
    for name, p in model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(p.detach(), wanted[name])
    regulariser.close()
    if kind not in ("local", "lobster"):
        reference = by_classes(make(dtype=torch.float32)[0].double(), x.double(), kind)
        for name, s in found.items():
            assert (s - reference[name]).norm() < 0.2 * reference[name].norm()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"strength": -1e-4}, "strength: expected lambda"),
    ({"strength": float("nan")}, "strength: expected lambda"),
    ({"strength": 1e-4, "variant": "exact"}, "variant: expected one of 'full'"),
    ({"strength": 1e-4, "memory": 0}, "memory: expected"),
    ({"strength": 1e-4, "exclude": "nothing"}, "exclude: expected patterns"),
    ({"strength": 1e-4, "exclude": "*"}, "without any"),
])  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SeReNe(make()[0], **arguments)
