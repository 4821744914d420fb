"""Norm layers: gamma and beta freeze channel by channel, everything else is torch's."""

import copy

import pytest
import torch
from cases import NORM, SETS, assert_exact, by_name, chosen, gradients, ids, inside, randn
from torch import nn

import neq_kernels as neq

pytestmark = pytest.mark.usefixtures("poison", "one_thread", "device")

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
BATCH = [case for case in NORM if issubclass(case.make.func, nn.modules.batchnorm._BatchNorm)]


def pair(case, index, propagate="all", dtype=torch.float32):
    plain = case.layer(dtype)
    layer = inside(copy.deepcopy(plain), propagate)
    layer.set_active(index)
    return plain, layer


@pytest.mark.parametrize("case", NORM, ids=ids(NORM))
@pytest.mark.parametrize("propagate", ["all", "active"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients_of_every_set(case, propagate, training):
    for name in SETS:
        index = chosen(name, 9)
        plain, layer = pair(case, index, propagate)
        plain.train(training)
        layer.train(training)
        x = case.x()
        y = copy.deepcopy(plain)(x)
        assert torch.equal(copy.deepcopy(layer)(x), y)
        dy = randn(y.shape, torch.float32, 3)
        assert_exact(plain, x, dy, index, propagate, gradients(layer, x, dy))


@pytest.mark.parametrize("case", BATCH, ids=ids(BATCH))
@pytest.mark.parametrize("name", ["odd", "none", "all"])
def test_running_statistics_are_torchs_bit_for_bit(case, name):
    plain, layer = pair(case, chosen(name, 9))
    for seed in range(3):
        x = randn(case.input, torch.float32, seed).requires_grad_()
        assert torch.equal(layer(x), plain(x))
    layer.eval()
    plain.eval()
    assert torch.equal(layer(x), plain(x))
    ours, torchs = layer.state_dict(), plain.state_dict()
    assert list(ours) == list(torchs)
    assert all(torch.equal(ours[key], torchs[key]) for key in torchs)


def test_statistics_that_stop_being_tracked():
    plain, layer = pair(by_name(NORM, "2d"), [1, 4])
    for model in (plain, layer):
        model.track_running_stats = False
    x = by_name(NORM, "2d").x()
    assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer.running_mean, plain.running_mean)
    assert torch.equal(layer.running_var, plain.running_var)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", NORM, ids=ids(NORM))
def test_every_dtype(case, dtype):
    index = chosen("odd", 9)
    plain, layer = pair(case, index, dtype=dtype)
    x = case.x(dtype)
    dy = randn(case.input, dtype, 3)
    found = gradients(layer, x, dy)
    expected = gradients(plain, x, dy)
    assert torch.equal(found["x"], expected["x"])
    for parameter in ("weight", "bias"):
        if parameter in expected:
            mask = layer.active.mask().to(x.device)
            assert torch.equal(found[parameter], torch.where(mask, expected[parameter], 0))


@pytest.mark.parametrize("case", NORM, ids=ids(NORM))
@pytest.mark.parametrize("wanted", range(8))
def test_only_what_is_asked_for(case, wanted):
    for index in ([0, 3, 4], []):
        plain, layer = pair(case, index)
        for model in (plain, layer):
            model.weight.requires_grad_(bool(wanted & 2))
            if getattr(model, "bias", None) is not None:
                model.bias.requires_grad_(bool(wanted & 4))
        x = case.x().detach().requires_grad_(bool(wanted & 1))
        y = layer(x)
        has_bias = getattr(plain, "bias", None) is not None
        asked = wanted & (7 if has_bias else 3) if index else wanted & 1
        assert y.requires_grad == bool(asked)
        if asked:
            dy = randn(y.shape, torch.float32, 3)
            assert_exact(plain, x, dy, index, "all", gradients(layer, x, dy))


def test_not_a_number_stays_in_its_own_channel():
    layer = neq.convert(nn.LayerNorm(9))
    layer.set_active([1, 4])
    dy = torch.randn(5, 9)
    dy[0, 1], dy[0, 2] = float("nan"), float("inf")
    found = gradients(layer, torch.randn(5, 9), dy)
    assert found["weight"].isnan().tolist() == [c == 1 for c in range(9)]
    assert (found["bias"][layer.active.frozen] == 0).all()


def test_channels_last_is_kept():
    layer = neq.convert(nn.BatchNorm2d(9))
    layer.set_active([1, 4])
    x = torch.randn(2, 9, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    y.backward(torch.randn_like(y))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("case", BATCH, ids=ids(BATCH))
def test_a_wrong_input_is_refused_as_torch_refuses_it(case):
    plain, layer = pair(case, [0])
    wrong = torch.randn(9)
    with pytest.raises(ValueError) as torchs:
        plain(wrong)
    with pytest.raises(ValueError) as ours:
        layer(wrong)
    assert str(ours.value) == str(torchs.value)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.BatchNorm1d(9).eval(), (1, 9)),
        (lambda: nn.LayerNorm(9), (9,)),
        (lambda: nn.RMSNorm(9), (9,)),
    ],
)
def test_the_outputs_gradient_is_left_alone(make, shape, device):
    """Even where the bias's has the same values, of the one position there is."""
    layer = inside(make().to(device))
    layer.set_active([1, 4])
    dy = torch.ones(shape, device=device)
    layer(torch.randn(shape, device=device)).backward(dy)
    assert torch.equal(dy, torch.ones_like(dy))
    frozen = [0, 2, 3, 5, 6, 7, 8]
    assert all((p.grad[frozen] == 0).all() and (p.grad != 0).any() for p in layer.parameters())
