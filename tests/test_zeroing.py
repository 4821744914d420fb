"""Torch's own backward with zeros for frozen neurons, at any order of differentiation."""

import pytest
import torch
import torch.nn.functional as F
from cases import CONV, LINEAR, NORM, conv1d_columns, randn
from kinds import KINDS, Masked, assert_frozen_rows_zero, converted, each_kind
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import neq_kernels as neq
from neq_kernels import zeroing
from neq_kernels.planner import rule

pytestmark = pytest.mark.usefixtures("one_thread", "device")
known = pytest.mark.parametrize("known", [True, False], ids=["known nodes", "unknown nodes"])


@pytest.fixture(autouse=True)
def dense(monkeypatch):
    """The planner has settled on dense, whatever there is."""
    monkeypatch.setattr(rule, "choose", lambda geometry: "dense")
    monkeypatch.setattr(rule, "advantage", lambda geometry: 0.0)


def settled(layer, x):
    """``layer``, after a step by which its next forwards know that their backward is dense."""
    layer(x).sum().backward()
    layer.zero_grad()
    return layer


def only(known, monkeypatch):
    """Nodes are known by name, or, where not, found by what they lead to."""
    if not known:
        monkeypatch.setattr(zeroing, "NODES", {})


@each_kind
@known
@pytest.mark.parametrize("order", [2, 3])
def test_orders_of_differentiation(case, known, order, monkeypatch):
    only(known, monkeypatch)
    truth = Masked(case, (1, 4), "all")
    layer = settled(converted(case, dtype=torch.float64), case.x(torch.float64))
    found = []
    for model, own in ((truth, truth.layer), (layer, layer)):
        own.zero_grad()
        x = case.x(torch.float64)
        y = model(x)
        (dx,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        loss = y.square().sum() + dx.square().sum()
        if order == 3:
            (d2x,) = torch.autograd.grad((dx.square() * x).sum(), x, create_graph=True)
            loss = loss + d2x.square().sum()
        try:
            loss.backward()
        except RuntimeError as error:
            if model is not truth or "order derivatives" not in str(error):
                raise
            pytest.skip(f"this torch's own: {error}")
        found.append({"x": x.grad, **{n: p.grad for n, p in own.named_parameters()}})
    expected, ours = found
    assert layer._plan.zeroing
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, msg=lambda m, n=name: f"{n}: {m}")


@each_kind
def test_what_was_differentiated_once_for_a_graph_is_right_without(case):
    layer = settled(converted(case), case.x())
    x = case.x()
    y = layer(x)
    torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    y.square().sum().backward()
    assert_frozen_rows_zero(layer)
    assert layer.weight.grad.any()


@pytest.mark.parametrize("known", [True, False], ids=["known nodes", "unknown nodes"])
def test_other_uses_of_the_same_parameter_keep_their_gradients(known, monkeypatch):
    only(known, monkeypatch)
    layer = neq.convert(nn.Conv2d(4, 4, 3, padding=1, bias=False, dtype=torch.float64))
    layer.set_active([0, 2])
    settled(layer, randn((2, 4, 5, 5), torch.float64, 0).requires_grad_())
    mask = layer.active.mask().view(-1, 1, 1, 1)
    weight = layer.weight
    found = []
    for middle in (
        layer,
        lambda x: F.conv2d(x, torch.where(mask, weight, weight.detach()), None, 1, 1),
    ):
        layer.zero_grad()
        x = randn((2, 4, 5, 5), torch.float64, 1).requires_grad_()
        before = F.conv2d(x, weight, None, 1, 1).tanh()
        y = F.conv2d(middle(before).tanh(), weight, None, 1, 1)
        (dx,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        (y.square().sum() + dx.square().sum()).backward()
        found.append((x.grad, weight.grad))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)
    assert layer._plan.zeroing
    assert found[0][1][1].any()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    "case",
    [c for c in CONV if c.x().dim() == c.layer().weight.dim()]
    + [c for c in LINEAR if c.x().dim() > 1]
    + [conv1d_columns(c) for c in LINEAR if c.x().dim() > 1]
    + NORM,
    ids=lambda case: case.name,
)
def test_this_torchs_nodes_are_known(case, monkeypatch):
    if isinstance(case.layer(), nn.RMSNorm):
        pytest.skip("composed of several operations")
    layer = settled(converted(case, index=[0]), case.x())

    def searched(*arguments):
        pytest.fail("one hook on a node known by name is what makes this cheap")

    monkeypatch.setattr(zeroing.Zeroing, "_search", searched)
    layer(case.x()).sum().backward()
    assert_frozen_rows_zero(layer)


def test_running_statistics_move_once_a_forward():
    layer, plain = neq.convert(nn.BatchNorm2d(4)), nn.BatchNorm2d(4)
    layer.set_active([0, 2])
    x = randn((2, 4, 3, 3), torch.float32, 0)
    for _ in range(3):
        layer(x)
        plain(x)
    for ours, theirs in zip(layer.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_changed_set_is_refused_at_every_order():
    case = KINDS["conv"]
    for create_graph in (False, True):
        layer = settled(converted(case), case.x())
        y = layer(case.x())
        layer.set_active([0])
        with pytest.raises(RuntimeError, match="expected the active set that the forward saw"):
            torch.autograd.grad(y.sum(), layer.weight, create_graph=create_graph)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_neurons_are_zeroed_in_runs_of_memory(kind):
    class Filled(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.index_fill_.int_Scalar and args[0].dim() > 1:
                filled.append((args[0].stride(), args[1]))
            return func(*args, **(kwargs or {}))

    filled, case = [], KINDS[kind]
    layer = settled(converted(case), case.x())
    y = layer(case.x()).sum()
    with Filled():
        y.backward()
    ((strides, dim),) = filled
    assert strides[dim] == max(strides)
