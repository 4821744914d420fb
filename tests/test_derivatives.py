"""Second derivatives, forward mode, and the transforms of torch.func."""

import copy

import pytest
import torch
from cases import randn, zeroed
from kinds import (
    KINDS,
    Masked,
    converted,
    each_kind,
    each_propagate,
    images,
    net,
    of_kinds,
)
from torch import nn

import neq_kernels as neq
from neq_kernels.convert import converted_layers

pytestmark = pytest.mark.usefixtures("one_thread")


@each_kind
@each_propagate
@pytest.mark.parametrize("index", [(1, 4), ()], ids=["some", "none"])
def test_gradient_penalty(case, propagate, index, path):
    if propagate == "active" and not index and case.layer().weight.dim() > 1:
        pytest.skip("nothing passes: there is no first derivative")
    layer = converted(case, index, propagate, torch.float64)
    truth = Masked(case, index, propagate)
    found = []
    for model, own in ((layer, layer), (truth, truth.layer)):
        x = case.x(torch.float64)
        y = model(x)
        (dx,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        (y.square().sum() + dx.square().sum()).backward()
        found.append({"x": x.grad, **{n: p.grad for n, p in own.named_parameters()}})
    ours, expected = found
    for name, gradient in expected.items():
        if ours[name] is None:
            assert gradient is None or not gradient.any(), name
        else:
            torch.testing.assert_close(ours[name], gradient, msg=lambda m, n=name: f"{n}: {m}")


@each_kind
@each_propagate
def test_second_derivatives_of_the_weight_gradient(case, propagate, path):
    layer = converted(case, (1, 4), propagate, torch.float64)
    truth = Masked(case, (1, 4), propagate)
    found = []
    for model, own in ((layer, layer), (truth, truth.layer)):
        x = case.x(torch.float64)
        parameters = list(own.parameters())
        first = torch.autograd.grad(model(x).sin().sum(), parameters, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), [x, *parameters]))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


@each_kind
def test_gradgradcheck(case, path):
    layer = converted(case, dtype=torch.float64)
    if isinstance(layer, nn.BatchNorm2d):
        layer.eval()
    x = case.x(torch.float64).detach()[:2, :2].clone() if case is KINDS["linear"] else None
    x = case.x(torch.float64) if x is None else x.requires_grad_()
    assert torch.autograd.gradgradcheck(layer, (x,), fast_mode=True)


def test_functional_call_and_func_grad():
    model = net()
    plain = neq.revert(copy.deepcopy(model))
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(of):
        return lambda p: torch.func.functional_call(of, p, images()).square().sum()

    model.eval()
    plain.eval()
    ours, dense = torch.func.grad(loss(model))(parameters), torch.func.grad(loss(plain))(parameters)
    for name, layer in converted_layers(model).items():
        for key in ("weight", "bias"):
            expected = zeroed(dense[f"{name}.{key}"], 0, layer.active.frozen.tolist())
            torch.testing.assert_close(ours[f"{name}.{key}"], expected)
    swapped = {name: (2 * p).requires_grad_() for name, p in parameters.items()}
    torch.func.functional_call(model, swapped, images()).square().sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert (swapped["5.weight"].grad[model[5].active.frozen] == 0).all()
    assert (swapped["5.weight"].grad[1] != 0).any()


# torch's own batch norm refuses: running statistics are changed in place.
@of_kinds(*(name for name in KINDS if name != "batch-norm"))
def test_per_sample_gradients_by_vmap(case):
    layer = converted(case)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(p, x):
        return torch.func.functional_call(layer, p, x.unsqueeze(0)).sin().sum()

    x = case.x().detach()
    mapped = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i, sample in enumerate(x):
        layer.zero_grad()
        loss(dict(layer.named_parameters()), sample).backward()
        for name, p in layer.named_parameters():
            torch.testing.assert_close(mapped[name][i], p.grad)


# torch scripts its own decompositions when forward mode is first used.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
@each_kind
def test_forward_mode(case):
    layer, plain = converted(case), case.layer()
    layer.eval()
    plain.eval()
    x, tangent = case.x().detach(), randn(case.input, torch.float32, 7)
    ours, expected = (torch.func.jvp(m, (x,), (tangent,)) for m in (layer, plain))
    torch.testing.assert_close(ours, expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        y = torch.autograd.forward_ad.unpack_dual(layer(dual))
        torch.testing.assert_close(y.tangent, expected[1])
