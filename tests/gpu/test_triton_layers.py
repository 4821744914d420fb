"""Layers that compute their gradients in Triton: eagerly, compiled, and when asked for too much.

Runs on a GPU, or interpreted: TRITON_INTERPRET=1 python -m pytest tests/gpu/test_triton_layers.py
"""

import pytest
import torch
from cases import LINEAR, assert_exact, by_name, conv1d_columns, gradients, inside, randn
from torch import nn

import neq_kernels as neq
from neq_kernels import backends
from neq_kernels.active import Lists, lists
from neq_kernels.planner import rule

pytest.importorskip("triton")
from neq_kernels.kernels.conv import conv_wgrad
from neq_kernels.kernels.linear_wgrad import linear_wgrad

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poison")]

CASES = [by_name(LINEAR, name) for name in ("vector", "tokens", "empty-batch", "no-bias", "blocks")]
CASES.append(conv1d_columns(by_name(LINEAR, "tokens")))


@pytest.fixture(autouse=True)
def triton(triton_device, monkeypatch):
    monkeypatch.setattr(rule, "choose", lambda geometry: "packed")
    with backends.use("triton"):
        yield


@pytest.mark.parametrize("propagate", ["all", "active"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_of_a_layer(case, propagate, triton_device):
    plain = case.layer().to(triton_device)
    x = case.x().detach().to(triton_device).requires_grad_()
    dy = randn(plain(x).shape, torch.float32, seed=3).to(triton_device)
    layer = inside(case.layer().to(triton_device), propagate)
    layer.set_active([1, 4, 10])
    found = gradients(layer, x, dy)
    assert_exact(plain, x, dy, [1, 4, 10], propagate, found)
    assert neq.report(nn.Sequential(layer)).layers[0].path.startswith("packed (triton)")


@pytest.mark.parametrize("propagate", ["all", "active"])
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_a_compiled_layer_follows_its_set(propagate, triton_device):
    case = by_name(LINEAR, "tokens")
    plain = case.layer().to(triton_device)
    model = neq.convert(nn.Sequential(case.layer().to(triton_device)), propagate=propagate)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = case.x().detach().to(triton_device).requires_grad_()
    dy = randn(plain(x).shape, torch.float32, seed=3).to(triton_device)
    torch._dynamo.reset()
    for index in ([1, 4, 10], [0], list(range(11))[1:]):
        model[0].set_active(index)
        with torch._dynamo.config.patch(error_on_recompile=index != [1, 4, 10]):
            model.zero_grad()
            x.grad = None
            compiled(x).backward(dy)
        found = {"x": x.grad, "weight": model[0].weight.grad, "bias": model[0].bias.grad}
        assert_exact(plain, x, dy, index, propagate, found)


def test_a_dtype_that_triton_does_not_serve_is_refused(triton_device):
    layer = neq.convert(nn.Linear(5, 11, device=triton_device).double())
    layer.set_active([1])
    y = layer(torch.randn(3, 5, device=triton_device, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"linear_wgrad: .*triton: serves float32.*use\(None\)"):
        y.sum().backward()


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_captured_list_has_room_for_more_than_are_active(kind, triton_device):
    """A graph captured for up to 16 of 16 neurons, replayed with 5: the others' rows are zero."""
    shape = (3, 16, 5, 5) if kind == "conv" else (40, 16)
    dy, x = (randn(shape, torch.float32, seed).to(triton_device) for seed in (1, 2))
    index = torch.tensor([0, 3, 4, 9, 15])
    padded = torch.full((16,), -1, dtype=torch.int32)
    padded[:5] = index
    captured = Lists(padded.to(triton_device), 16, captured=True)
    exact = lists(padded.to(triton_device), torch.tensor(5))
    if kind == "conv":
        weight = randn((16, 16, 3, 3), torch.float32, 3).to(triton_device)
        arguments = (dy, x, weight, True, (1, 1), (1, 1), (1, 1), 1)
        ours, expected = (conv_wgrad(*arguments[:3], c, *arguments[3:]) for c in (captured, exact))
    else:
        ours, expected = (linear_wgrad(dy, x, c, True, False) for c in (captured, exact))
    for found, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, wanted)
        assert not found[[1, 2, 5, 14]].any()
