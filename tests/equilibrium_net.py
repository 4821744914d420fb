"""A small model and short words for the tests of Equilibrium."""

import torch
from torch import nn

import neq_kernels as neq
from neq_kernels.equilibrium import Equilibrium

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """The head is registered first and runs last; `spare` runs where `use_spare` says so."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 2)
        self.body = nn.Linear(3, 5)
        self.norm = nn.LayerNorm(5)
        self.spare = nn.Linear(5, 5)
        self.use_spare = True

    def forward(self, x):
        x = self.norm(self.body(x))
        if self.use_spare:
            x = self.spare(x)
        return self.head(torch.relu_(x))


def make(model=None, probe=(X,), **arguments):
    torch.manual_seed(0)
    model = neq.convert(Net() if model is None else model)
    return model, Equilibrium(model, list(probe), **arguments)


def rows(report):
    return {row.name: row for row in report.layers}


def frozen(model):
    return {name: active.size - active.count for name, active in neq.get_active(model).items()}
