"""How often a model on a device makes the host wait: once per update, once per set_active."""

import pytest
import torch
from equilibrium_net import Net
from pretend_device import DEVICE, PretendDevice
from torch import nn

import neq_kernels as neq
from neq_kernels.equilibrium import Equilibrium

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def device():
    with PretendDevice() as mode:
        yield mode


def make(depth=0):
    torch.manual_seed(0)
    body = [nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)) for _ in range(depth)]
    return neq.convert(nn.Sequential(*body, Net()))


def freeze_some(model, step):
    with torch.no_grad():
        for place, p in enumerate(model.parameters()):
            if p.dim() == 2 and place % 2:
                p[0].add_(step)


def test_the_device_counts(device):
    x = torch.ones(3, device=DEVICE)
    assert x.device == DEVICE
    assert device.copies == 0
    assert (x + 1).cpu().tolist() == [2, 2, 2]
    assert (x * 2).to("cpu").device.type == "cpu"
    assert device.copies == 2
    torch.empty(3, device="cpu").copy_(x)
    assert device.copies == 3
    torch.empty(3, device=DEVICE).copy_(torch.ones(3))
    x.to(DEVICE), torch.ones(3).to(DEVICE)
    assert device.copies == 3
    assert not device.waits
    x.sum().item(), x.nonzero(), bool((x > 0).all())
    assert len(device.waits) == 3


@pytest.mark.parametrize("depth", [0, 6])
def test_an_update_makes_one_copy_to_the_host(device, depth):
    model = make(depth).to(DEVICE)
    tracker = Equilibrium(model, [X, X + 1], warmup=0)
    tracker.update()
    assert device.copies == 1
    for step in (0.0, 0.5, 0.0):
        freeze_some(model, step)
        before = device.copies
        report = tracker.update()
        assert device.copies == before + 1
        assert report.frozen == sum(a.size - a.count for a in neq.get_active(model).values())
        assert report.frozen > 0
    assert not device.waits


def test_updates_are_those_of_the_host(device):
    models = [make(2).to(DEVICE), make(2)]
    trackers = [Equilibrium(model, [X], warmup=0) for model in models]
    for step in (0.0, 0.5, 0.25):
        for model in models:
            freeze_some(model, step)
        reports = [tracker.update() for tracker in trackers]
        assert neq.get_active(models[0]) == neq.get_active(models[1])
        for ours, theirs in zip(*(report.layers for report in reports), strict=True):
            assert ours == theirs


def test_set_active_copies_all_masks_at_once(device):
    model = make(3).to(DEVICE)
    sizes = {name: active.size for name, active in neq.get_active(model).items()}
    masks = {name: torch.arange(size) % 2 == 0 for name, size in sizes.items()}
    there = {name: mask.to(DEVICE) for name, mask in masks.items()}
    before = device.copies
    neq.set_active(model, there)
    assert device.copies == before + 1
    assert not device.waits
    for name, active in neq.get_active(model).items():
        assert torch.equal(active.mask(), masks[name])
        layer = model.get_submodule(name)
        assert layer._index.cpu().tolist()[: active.count] == active.index.tolist()
