"""What people train with: accumulation, AMP, checkpointing, hooks, layers used twice."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import randn, zeroed
from kinds import (
    assert_frozen_rows_zero,
    assert_same,
    converted,
    each_kind,
    each_propagate,
    grads,
    images,
    net,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

import neq_kernels as neq

pytestmark = pytest.mark.usefixtures("one_thread", "device")


@each_kind
def test_two_backwards_accumulate(case):
    layer = converted(case)
    layer(case.x()).square().sum().backward()
    once = grads(layer)
    layer(case.x()).square().sum().backward()
    for name, gradient in grads(layer).items():
        torch.testing.assert_close(gradient, 2 * once[name])
    assert_frozen_rows_zero(layer)


def test_accumulation_over_a_change_of_the_set():
    layer = neq.convert(nn.Linear(3, 4))
    x = torch.ones(2, 3)
    for index in ([0, 1], [1, 2], [], None):
        layer.set_active(index)
        y = layer(x)
        if y.requires_grad:
            y.sum().backward()
    assert layer.bias.grad.tolist() == [4, 6, 4, 2]


@each_kind
@each_propagate
def test_retain_graph_and_backward_twice(case, propagate):
    layer, x = converted(case, propagate=propagate), case.x()
    loss = layer(x).square().sum()
    loss.backward(retain_graph=True)
    once = {**grads(layer), "x": x.grad.clone()}
    loss.backward()
    for name, gradient in {**grads(layer), "x": x.grad}.items():
        torch.testing.assert_close(gradient, 2 * once[name])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@each_kind
@pytest.mark.parametrize("inside", [True, False], ids=["backward-inside", "backward-outside"])
def test_autocast(case, inside):
    layer, plain = converted(case), case.layer()
    x, dy = case.x(), None
    found = []
    for model in (layer, plain):
        x.grad = None
        with torch.autocast(torch.get_default_device().type, torch.bfloat16):
            y = model(x)
            dy = randn(y.shape, y.dtype, 3)
            if inside:
                y.backward(dy)
        if not inside:
            y.backward(dy)
        found.append((y, x.grad, grads(model)))
    (y, dx, ours), (torchs_y, torchs_dx, torchs) = found
    assert y.dtype == torchs_y.dtype
    assert torch.equal(y, torchs_y)
    torch.testing.assert_close(dx, torchs_dx, rtol=0.02, atol=0.02)
    assert_frozen_rows_zero(layer)
    for name, parameter, dim in layer.neuron_parameters():
        assert ours[name].dtype == torch.float32
        expected = zeroed(torchs[name], dim, layer.active.frozen.tolist())
        torch.testing.assert_close(ours[name], expected, rtol=0.02, atol=0.05)
        assert parameter.dtype == torch.float32


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_backward_alone_under_autocast_keeps_its_dtype(case, dtype, path):
    found = []
    for inside in (False, True):
        layer = converted(case, dtype=dtype)
        y = layer(case.x(dtype))
        with torch.autocast(torch.get_default_device().type, torch.bfloat16, enabled=inside):
            y.sin().sum().backward()
        found.append(grads(layer))
    assert_same(*found)


@each_kind
def test_autocast_leaves_float64_alone(case):
    layer, plain, x = converted(case), case.layer(), case.x(torch.float64)
    layer.double()
    plain.double()
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        assert torch.equal(layer(x), plain(x))


def test_grad_scaler_scales_and_skips():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler(torch.get_default_device().type, init_scale=8.0)
    loss = model(images()).square().mean()
    loss.backward()
    plain = grads(model)
    optimizer.zero_grad()
    scaler.scale(model(images()).square().mean()).backward()
    scaler.unscale_(optimizer)
    for name, gradient in grads(model).items():
        torch.testing.assert_close(gradient, plain[name])
    before = copy.deepcopy(model.state_dict())
    model[5].weight.grad[1, 0] = float("inf")
    optimizer.zero_grad()
    scaler.update()
    scaler.scale(model(images()).mean() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("index", [(1, 4), ()], ids=["some", "none"])
@each_propagate
def test_checkpoint(use_reentrant, index, propagate):
    found = []
    for wrapped in (False, True):
        model = net(propagate if index else "all", index)
        model[7].set_active([0])
        x = images().requires_grad_()
        hidden = checkpoint(model[:7], x, use_reentrant=use_reentrant) if wrapped else model[:7](x)
        model[7](hidden).square().sum().backward()
        found.append({**grads(model), "x": x.grad})
    assert_same(*found)


@each_kind
def test_hooks_fire(case):
    layer, seen = converted(case), []
    layer.register_forward_pre_hook(lambda *_: seen.append("pre"))
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.register_full_backward_pre_hook(lambda *_: seen.append("backward pre"))
    layer.register_full_backward_hook(lambda m, dx, dy: seen.append(("backward", dx[0].shape)))
    layer.weight.register_hook(lambda g: seen.append("weight"))
    layer.weight.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    x = case.x()
    layer(x).sum().backward()
    backward = ("backward", x.shape)
    assert seen[:3] == ["pre", "forward", "backward pre"]
    assert sorted(map(str, seen[3:])) == sorted(map(str, ["weight", "accumulated", backward]))


@each_kind
@each_propagate
def test_a_layer_used_twice_in_one_forward(case, propagate):
    layer = converted(case, propagate=propagate)
    xs = case.x(), randn(case.input, torch.float32, 9)
    sum(layer(x).square().sum() for x in xs).backward()
    both = grads(layer)
    layer.zero_grad()
    for x in xs:
        layer(x).square().sum().backward()
    for name, gradient in grads(layer).items():
        torch.testing.assert_close(both[name], gradient)
    assert_frozen_rows_zero(layer)


@pytest.mark.parametrize("ema", [False, True])
def test_averaged_model(ema):
    model = net()
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.5) if ema else None
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(2):
        model(images(step)).square().sum().backward()
        optimizer.step()
        averaged.update_parameters(model)
        neq.set_active(model, {"5": [step]})
    assert averaged.module[5].active.index.tolist() == [1, 4]
    averaged(images()).sum().backward()
    assert not any("_index" in name or "_mask" in name for name in averaged.state_dict())


def test_training_to_the_end_is_bit_identical_to_masked_dense_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
    plain = copy.deepcopy(model)
    neq.convert(model)
    optimizers = [torch.optim.Adam(m.parameters(), 0.01) for m in (model, plain)]
    for step in range(20):
        index = [c for c in range(9) if (c + step) % 3]
        neq.set_active(model, {"0": index})
        x = randn((8, 6), torch.float32, step)
        for m, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            F.mse_loss(m(x), x[:, :3]).backward()
            if m is plain:
                for p in m[0].parameters():
                    p.grad[[c for c in range(9) if c not in index]] = 0
            optimizer.step()
    for ours, dense in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-6)
