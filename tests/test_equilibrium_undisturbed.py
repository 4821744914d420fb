"""update() leaves the model and the process as it found them, also when the model raises."""

import copy
import random

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neq_kernels as neq
from neq_kernels.equilibrium import Equilibrium
from neq_kernels.equilibrium.probe import digest
from neq_kernels.equilibrium.undisturbed import undisturbed, unwrapped


class Net(nn.Module):
    """Does in eval mode what models should not: draws numbers, and writes to and swaps buffers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.frozen_norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("swapped", torch.zeros(2))
        self.register_buffer("cache", torch.zeros(1))
        self.register_buffer("nothing", None)
        self.fail = False

    def forward(self, x):
        self.calls += 1
        self.swapped = self.swapped + 1
        self.cache = torch.zeros(len(self.cache) + 1)
        torch.rand(1), random.random(), numpy.random.rand()
        x = torch.relu_(self.frozen_norm(self.norm(self.conv(x))))
        if self.fail:
            raise RuntimeError("boom")
        return self.head(x.mean((2, 3)))


def make():
    torch.manual_seed(0)
    model = neq.convert(Net())
    batches = list(torch.randn(2, 3, 2, 5, 5))
    with torch.no_grad():
        model(batches[0])  # the first forward after convert is watched, with hooks of its own
    model.frozen_norm.eval()
    model.conv.register_forward_hook(lambda module, arguments, output: None)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model, batches


def state(model):
    """Everything that has to be equal before and after; identities where objects must stay."""
    return {
        "training": [module.training for module in model.modules()],
        "hooks": [list(module._forward_hooks) for module in model.modules()],
        "pre_hooks": [list(module._forward_pre_hooks) for module in model.modules()],
        "parameters": [(id(p), p._version, p.requires_grad) for p in model.parameters()],
        "gradients": [(id(p.grad), p.grad._version) for p in model.parameters()],
        "buffers": [
            (name, id(buffer)) for name, buffer in model.named_buffers() if name != "cache"
        ],
        "values": {k: v.tolist() for k, v in model.state_dict().items() if k != "cache"},
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": [
            part.tolist() if hasattr(part, "tolist") else part for part in numpy.random.get_state()
        ],
        "grad_mode": torch.is_grad_enabled(),
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "autocast_cache": torch.is_autocast_cache_enabled(),
        "stance": torch._dynamo.eval_frame._stance.stance,
    }


@pytest.mark.parametrize("fail", [False, True])
def test_everything_is_as_before(fail):
    model, batches = make()
    before, active = state(model), neq.get_active(model)
    tracker = Equilibrium(model, batches)
    tracker.update()
    assert state(model) == before
    saved = tracker.state_dict()
    model.fail = fail
    if fail:
        with pytest.raises(RuntimeError, match="boom"):
            tracker.update()
        assert neq.get_active(model) == active
        assert digest(tracker.state_dict()) == digest(saved)
        assert tracker.epoch == 0
    else:
        tracker.update()
        assert tracker.epoch == 1
    assert state(model) == before


def test_a_run_that_failed_does_not_count():
    """After a failure the next update finds what it would have found without it."""
    reports = []
    for fails in (False, True):
        model, batches = make()
        tracker = Equilibrium(model, batches)
        tracker.update()
        with torch.no_grad():
            model.conv.weight.add_(1)
        if fails:
            model.fail = True
            with pytest.raises(RuntimeError, match="boom"):
                tracker.update()
            model.fail = False
        reports.append(tracker.update().layers)
    assert reports[0] == reports[1]


def test_the_cache_that_grew_stays():
    model, batches = make()
    length = len(model.cache)
    Equilibrium(model, batches).update()
    assert len(model.cache) == length + 2


def test_an_overridden_train_is_not_called():
    class Merging(nn.Linear):
        def train(self, mode=True):
            raise AssertionError("train() may have side effects")

    model = neq.convert(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    model.add_module("merging", Merging(2, 2))
    Equilibrium(model, [torch.randn(3, 2)]).update()
    assert model.training


def test_loader_with_a_generator_of_its_own():
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(torch.randn(6, 2)), batch_size=2, generator=generator)
    before = generator.get_state()
    model = neq.convert(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    tracker = Equilibrium(model, loader)
    tracker.update()
    tracker.update()
    assert torch.equal(generator.get_state(), before)


def test_layers_run_in_eval_mode_without_gradient():
    seen = []

    class Look(nn.Module):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return x

    model = neq.convert(nn.Sequential(nn.Linear(2, 2), Look()))
    Equilibrium(model, [torch.randn(3, 2)], exclude=()).update()
    assert seen == [(False, False)]


def test_inside_autocast_the_weights_of_now_are_measured():
    """autocast keeps weights cast to bf16 while its context lasts, whatever the optimizer does."""
    model = neq.convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    x = torch.randn(3, 4)
    tracker = Equilibrium(model, [x], warmup=0)
    with torch.autocast("cpu", torch.bfloat16):
        tracker.update()
        model(x).sum().backward()
        with torch.no_grad():
            model[0].weight.neg_(), model[0].bias.neg_()
        assert tracker.update().layers[0].velocity == pytest.approx(2)
        assert torch.is_autocast_cache_enabled()


def test_autocast_is_used_as_found():
    dtypes = []
    model = neq.convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    model[0].register_forward_hook(lambda m, a, output: dtypes.append(output.dtype))
    tracker = Equilibrium(model, [torch.randn(3, 4)])
    with torch.autocast("cpu", torch.bfloat16):
        tracker.update()
    tracker.update()
    assert dtypes == [torch.bfloat16, torch.float32]


def test_encoders_do_not_take_their_fast_path():
    """With padding, torch's encoder would pass nested tensors to its layers in eval mode."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = neq.convert(nn.TransformerEncoder(layer, 2))
    padding = torch.tensor([[False] * 4, [False, False, True, True]])
    batch = {"src": torch.randn(2, 4, 8), "src_key_padding_mask": padding}
    tracker = Equilibrium(model, [batch], exclude=())
    tracker.update()
    report = tracker.update()
    assert {row.name.split(".")[-1] for row in report.layers} >= {"linear1", "linear2", "norm1"}
    assert all(row.velocity is not None for row in report.layers)


def test_wrappers_are_taken_off():
    model = nn.Linear(2, 2)
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    assert unwrapped(wrapped) is model
    assert unwrapped(model) is model


def test_undisturbed_restores_a_deep_copy_too():
    model, batches = make()
    other = copy.deepcopy(model)
    with undisturbed(other):
        other(batches[0])
    assert other.calls == model.calls
