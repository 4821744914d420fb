"""What the autograd graph holds: nothing of ours when all are active, no input when none is, and
the set that the forward saw; and what the backward allocates."""

import weakref

import pytest
import torch
from cases import inside, randn
from kinds import (
    assert_frozen_rows_zero,
    assert_same,
    converted,
    each_kind,
    each_propagate,
    grads,
    images,
    net,
    products,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import neq_kernels as neq

pytestmark = pytest.mark.usefixtures("one_thread", "device")


@each_kind
def test_backward_after_a_change_of_the_set_raises(case):
    layer = converted(case)
    y = layer(case.x())
    layer.set_active([0])
    with pytest.raises(RuntimeError, match="active set that the forward saw, but it was changed"):
        y.sum().backward()
    assert all(p.grad is None for p in layer.parameters())
    layer(case.x()).sum().backward()


@products
def test_backward_after_a_change_from_none_raises(case):
    layer = converted(case, ())
    y = layer(case.x())
    layer.set_active([0])
    with pytest.raises(RuntimeError, match="changed in between"):
        y.sum().backward()


@each_kind
def test_a_change_after_an_all_active_forward_keeps_all_rows(case):
    layer, plain = neq.convert(case.layer()), case.layer()
    y = layer(case.x())
    layer.set_active([0])
    y.square().sum().backward()
    plain(case.x()).square().sum().backward()
    assert_same(grads(layer), grads(plain))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@each_kind
def test_a_change_in_no_grad_and_inference_mode_is_seen(case, mode):
    layer = converted(case)
    y = layer(case.x())
    with mode():
        layer.set_active([0])
    with pytest.raises(RuntimeError, match="changed in between"):
        y.sum().backward()
    layer(case.x()).sum().backward()
    assert_frozen_rows_zero(layer)


def test_a_change_before_a_checkpointed_backward_raises():
    model, x = net(), images().requires_grad_()
    loss = checkpoint(model[:7], x, use_reentrant=False).square().sum()
    neq.set_active(model, {name: [0] for name in neq.get_active(model)})
    with pytest.raises(RuntimeError, match="changed in between"):
        loss.backward()


@each_kind
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_forward_without_gradients(case, mode):
    layer, plain = converted(case), case.layer()
    with mode():
        y = layer(case.x())
        assert torch.equal(y, plain(case.x()))
    assert not y.requires_grad
    assert y.is_inference() == (mode is torch.inference_mode)


@each_kind
def test_all_active_is_torchs_own_graph(case):
    layer, plain = neq.convert(case.layer()), case.layer()

    def nodes(y):
        names, waiting = [], [y.grad_fn]
        while waiting:
            node = waiting.pop()
            names.append(type(node).__name__)
            waiting += [child for child, _ in node.next_functions if child is not None]
        return names

    x = case.x()
    assert nodes(layer(x)) == nodes(plain(x))
    layer.set_active([0])
    layer(x).sum().backward()
    assert_frozen_rows_zero(layer)


@products
def test_none_active_saves_no_input_and_gives_no_gradient(case):
    layer = converted(case, ())
    x = case.x()
    hidden = x * 2
    dies = weakref.ref(hidden)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        y = layer(hidden)
    assert all(t is not hidden and t.data_ptr() != hidden.data_ptr() for t in saved if t.numel())
    saved.clear()
    y = layer(hidden)
    del hidden
    assert dies() is None
    y.sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in layer.parameters())


@products
def test_none_active_above_no_gradient_leaves_the_graph(case):
    layer = inside(case.layer())
    layer.set_active([])
    assert not layer(case.x().detach()).requires_grad


@each_kind
@each_propagate
def test_backward_through_a_model_frozen_whole_does_nothing(case, propagate):
    model = neq.convert(nn.Sequential(case.layer()), propagate=propagate)
    model[0].set_active([])
    y = model(case.x().detach())
    y.sum().backward()
    assert torch.equal(y, case.layer()(case.x()))
    assert all(p.grad is None for p in model.parameters())


@products
def test_a_frozen_weight_with_a_learning_bias_saves_no_input(case):
    layer = converted(case)
    layer.weight.requires_grad_(False)
    hidden = case.x() * 2
    dies = weakref.ref(hidden)
    y = layer(hidden)
    del hidden
    assert dies() is None
    y.sum().backward()
    assert layer.bias.grad is not None


@products
def test_autograd_takes_the_weight_gradient_without_a_copy(case, path):
    layer = converted(case)
    made = []
    layer.weight.register_hook(lambda gradient: made.append(gradient.data_ptr()))
    layer(case.x()).sum().backward()
    assert made == [layer.weight.grad.data_ptr()]


class _Allocated(TorchDispatchMode):
    """Bytes of every tensor that an operation makes rather than passes on."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        for t in result if isinstance(result, tuple | list) else [result]:
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in known:
                self.made.append((str(func), t.untyped_storage().nbytes()))
        return result


@each_propagate
@pytest.mark.parametrize(
    ("make", "shape", "layout"),
    [
        (lambda: nn.Linear(16, 64), (4, 128, 16), "contiguous"),
        (lambda: nn.Linear(16, 64), (4, 128, 16), "transposed"),
        (lambda: nn.Conv2d(8, 64, 3), (4, 8, 18, 18), "contiguous"),
        (lambda: nn.Conv2d(8, 64, 3), (4, 8, 18, 18), "channels_last"),
    ],
    ids=["linear", "linear-transposed", "conv", "conv-channels-last"],
)
def test_backward_makes_no_copy_as_large_as_dy(make, shape, layout, propagate, backend, path):
    layer = neq.convert(make(), propagate=propagate)
    layer.set_active([1, 7, 40])
    x = randn(shape, torch.float32, 1)
    if layout == "channels_last":
        layer.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    y = layer(x)
    dy = torch.ones_like(y)
    if layout == "transposed":
        if path == "dense":
            pytest.skip("a product of all rows takes dY as one matrix, in torch's own layer too")
        dy = dy.transpose(0, 1).contiguous().transpose(0, 1)
    with _Allocated() as allocated:
        y.backward(dy)
    whole = y.numel() * y.element_size()
    assert [entry for entry in allocated.made if entry[1] >= whole / 2] == []
    assert layer.weight.grad is not None
