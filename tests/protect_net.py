"""A small network with frozen neurons, trained for a few steps; what protect must hold."""

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def one_thread():
    """On tensors this small, threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(channels_last=False):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)
    )
    if channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def adam(model, **options):
    return torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1, **options)


def backward(model, seed=0, scale=lambda loss: loss):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 2, 4, 4, generator=generator)
    y = torch.randn(8, 5, generator=generator)
    loss = (model(x) - y).square().mean()
    scale(loss).backward()
    return loss


def train(model, optimizer, steps=3):
    for seed in range(steps):
        optimizer.zero_grad()
        backward(model, seed)
        optimizer.step()


def parameters(layer):
    return [p.detach().clone() for p in layer.parameters()]


def same(layer, before, rows=slice(None)):
    return [torch.equal(p[rows], q[rows]) for p, q in zip(layer.parameters(), before, strict=True)]


def assert_held(layer, before, rows):
    """The given rows stand as before, every other one has moved."""
    others = sorted(set(range(layer.weight.size(0))) - set(rows))
    for p, q in zip(layer.parameters(), before, strict=True):
        assert torch.equal(p[rows], q[rows])
        assert all(not torch.equal(p[row], q[row]) for row in others)


def freeze(model):
    """Conv rows 1, 4 and the whole Linear are frozen; the norm stays active."""
    model[0].set_active([0, 2, 3, 5])
    model[4].set_active([])
    return [1, 4]
