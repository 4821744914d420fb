"""propagate="active": dense autograd with the frozen channels of every dY set to zero."""

import copy

import pytest
import torch
from cases import chosen, inside, randn, size_of, skip_unserved, zeroed
from torch import nn

import neq_kernels as neq
from neq_kernels.convert import converted_layers

pytestmark = pytest.mark.usefixtures("poison", "one_thread", "device")


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 10, 3, padding=1, bias=False),  # its gradient would be rounding alone
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.Conv2d(10, 10, 3, groups=5),
        nn.Tanh(),
        nn.Conv2d(10, 12, 1, stride=2),
        nn.Flatten(),
        nn.Linear(48, 9),
        nn.LayerNorm(9),
        nn.Linear(9, 4),
    ).double()


def layers_of(model):
    """Convolutions and Linears: the layers that stop gradients."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def run(model, x):
    model.zero_grad()
    x = x.detach().requires_grad_()
    model(x).square().sum().backward()
    return {"x": x.grad, **{name: p.grad for name, p in model.named_parameters()}}


def expected(model, x, sets, stopping):
    """Gradients of torch's own ``model``, dY of the ``stopping`` layers masked by hand."""
    handles = []
    for name, layer in model.named_modules():
        if name in stopping:
            frozen = sets[name].frozen.to(layer.weight.device)

            def hook(layer, inputs, output, frozen=frozen):
                axis = 1 if isinstance(layer, nn.Conv2d) else -1
                output.register_hook(lambda dy: dy.index_fill(axis, frozen, 0))

            handles.append(layer.register_forward_hook(hook))
    found = run(model, x)
    for handle in handles:
        handle.remove()
    for name, active in sets.items():
        for parameter in ("weight", "bias"):
            if (key := f"{name}.{parameter}") in found:
                found[key] = zeroed(found[key], 0, active.frozen.tolist())
    return found


def assert_same(found, wanted, unreached=()):
    for name, gradient in wanted.items():
        if found[name] is None:
            assert not gradient.any(), f"{name}: no gradient, expected one"
            continue
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-11)
        assert torch.equal(found[name] == 0, gradient == 0), name


@pytest.mark.parametrize("names", [("one", "odd"), ("ends", "all but one"), ("all", "first")])
def test_a_whole_net(names, backend, path):
    skip_unserved(torch.float64)
    plain = net()
    model = neq.convert(copy.deepcopy(plain), propagate="active")
    x = randn((2, 3, 6, 6), torch.float64, 1)
    for i, (name, layer) in enumerate(converted_layers(model).items()):
        neq.set_active(model, {name: chosen(names[i % 2], size_of(layer))})
    sets = neq.get_active(model)
    found = run(model, x)
    assert_same(found, expected(plain, x, sets, layers_of(plain)))


def test_switched_at_run_time_layer_by_layer(backend):
    skip_unserved(torch.float64)
    plain = net()
    model = neq.convert(copy.deepcopy(plain))
    x = randn((2, 3, 6, 6), torch.float64, 1)
    neq.set_active(
        model, {name: chosen("odd", layer.size) for name, layer in converted_layers(model).items()}
    )
    sets = neq.get_active(model)
    for stopping in ((), ("3",), ("3", "9"), ("0", "5", "7"), ()):
        for name, layer in converted_layers(model).items():
            layer.propagate = "active" if name in stopping else "all"
        assert_same(run(model, x), expected(plain, x, sets, stopping))


def test_converting_again_switches_a_whole_model():
    model = neq.convert(net())
    assert {layer.propagate for layer in converted_layers(model).values()} == {"all"}
    neq.convert(model, propagate="active")
    assert {layer.propagate for layer in converted_layers(model).values()} == {"active"}
    neq.convert(model)
    assert {layer.propagate for layer in converted_layers(model).values()} == {"active"}


def test_the_choice_is_that_of_the_forward():
    layer = neq.convert(nn.Linear(4, 6))
    layer.set_active([1])
    x = torch.randn(3, 4, requires_grad=True)
    y = layer(x)
    layer.propagate = "active"
    y.sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 4))


@pytest.mark.parametrize("kind", [nn.Linear(4, 6), nn.Conv2d(4, 6, 1), nn.Conv1d(4, 6, 1)])
def test_a_layer_frozen_whole_cuts(kind):
    layer = inside(copy.deepcopy(kind), "active")
    layer.set_active([])
    shape = {2: (3, 4), 3: (3, 4, 5), 4: (3, 4, 5, 5)}[layer.weight.dim()]
    assert not layer(torch.randn(shape, requires_grad=True)).requires_grad


def test_a_norm_frozen_whole_does_not_cut():
    layer = neq.convert(nn.LayerNorm(5), propagate="active")
    layer.set_active([])
    x = torch.randn(2, 5, requires_grad=True)
    layer(x).backward(torch.randn(2, 5))
    assert x.grad.abs().sum() > 0
    assert layer.weight.grad is None


def test_report_names_what_no_gradient_reaches():
    model = neq.convert(net().float(), propagate="active")
    x = torch.randn(2, 3, 6, 6)
    model(x)
    assert neq.report(model).unreached == ()
    neq.set_active(model, {"5": []})
    model(x).sum().backward()
    assert neq.report(model).unreached == ("0", "1", "3")
    assert "no gradient reaches 3" in str(neq.report(model))
    assert model[3].weight.grad is None
    assert model[7].weight.grad is not None
    neq.set_active(model, {"5": None})
    model(x)
    assert neq.report(model).unreached == ()


def test_an_unknown_choice_is_refused():
    layer = neq.convert(nn.Linear(4, 6))
    with pytest.raises(ValueError, match="propagate: expected one of all, active, got 'some'"):
        layer.propagate = "some"
    assert layer.propagate == "all"
