"""A network and its gradients for the tests of neq.optim, and what its steps must equal."""

import torch
from protect_net import make
from torch import nn

import neq_kernels as neq

OPTIMIZERS = ["SGD", "AdamW"]
MOMENTUM = {"SGD": "momentum_buffer", "AdamW": "exp_avg"}
OPTIONS = {"SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}, "AdamW": {"lr": 0.01}}


class Scale(nn.Module):
    """Parameters that no layer counts as neurons: a scalar, and a complex one."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.phase = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, x):
        return x * self.scale * self.phase.abs().sum()


def network(dtype=torch.float32, channels_last=False):
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)
    model = neq.convert(nn.Sequential(*layers, Scale()))
    if channels_last:
        model.to(memory_format=torch.channels_last)
    model[:5].to(dtype)
    return model


def ours(name, model, **options):
    return getattr(neq.optim, name)(model.parameters(), model=model, **{**OPTIONS[name], **options})


def theirs(name, model, **options):
    return getattr(torch.optim, name)(model.parameters(), **{**OPTIONS[name], **options})


def give_gradients(model, generator, missing=(), channels_last=False):
    """What a backward leaves: zero where frozen, none for a layer frozen whole."""
    for name, p in model.named_parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        if p.dim() == 4 and channels_last:
            p.grad = p.grad.to(memory_format=torch.channels_last)
        if name in missing:
            p.grad = None
    for layer in model.modules():
        if hasattr(layer, "neuron_parameters"):
            for _, p, dim in layer.neuron_parameters():
                if layer.active.is_empty:
                    p.grad = None
                elif p.grad is not None:
                    p.grad.index_fill_(dim, layer.active.frozen, 0)


def assert_close(model, optimizer, twin, plain):
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)
        state, right = optimizer.state.get(p, {}), plain.state.get(q, {})
        assert set(state) == {key for key, value in right.items() if value is not None}
        for key, value in state.items():
            torch.testing.assert_close(value, right[key], msg=key)


def frozen_rows(model):
    """Copies of what must not change: parameters and second moments of frozen neurons."""
    return [
        (p, dim, layer.active.frozen, p.index_select(dim, layer.active.frozen).clone())
        for layer in neq.convert(model).modules()
        if hasattr(layer, "neuron_parameters")
        for _, p, dim in layer.neuron_parameters()
    ]


def real_network():
    torch.manual_seed(0)
    return neq.convert(make())
