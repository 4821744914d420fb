"""The six kinds of layers that training is tested with, and what the tests share."""

import pytest
import torch
from cases import CONV, LINEAR, NORM, by_name, conv1d_columns, randn, size_of
from torch import nn

import neq_kernels as neq

KINDS = {
    "linear": by_name(LINEAR, "tokens"),
    "columns": conv1d_columns(by_name(LINEAR, "tokens")),
    "conv": by_name(CONV, "plain"),
    "groups": by_name(CONV, "groups"),
    "batch-norm": by_name(NORM, "2d"),
    "layer-norm": by_name(NORM, "layer"),
}


def of_kinds(*names):
    """A test for each of the kinds called ``names``."""
    return pytest.mark.parametrize("case", [KINDS[name] for name in names], ids=names)


each_kind = of_kinds(*KINDS)
products = of_kinds("linear", "columns", "conv", "groups")
each_propagate = pytest.mark.parametrize("propagate", ["all", "active"])


def converted(case, index=(1, 4), propagate="all", dtype=torch.float32):
    layer = neq.convert(case.layer(dtype), propagate=propagate)
    layer.set_active(list(index))
    return layer


class Masked:
    """The definition: frozen rows are constants; with "active", so are the frozen outputs."""

    def __init__(self, case, index, propagate):
        self.layer = case.layer(torch.float64)
        self.active = neq.ActiveSet.from_index(list(index), size_of(self.layer))
        self.propagate, self.case = propagate, case

    def __call__(self, x):
        mask = self.active.mask()
        parameters = {}
        for name, p in self.layer.named_parameters():
            columns = name == "weight" and self.case is KINDS["columns"]
            shape = [1] * p.dim()
            shape[int(columns)] = -1
            parameters[name] = torch.where(mask.view(shape), p, p.detach())
        y = torch.func.functional_call(self.layer, parameters, x)
        if self.propagate == "active" and self.layer.weight.dim() > 1:
            shape = [1] * y.dim()
            shape[1 if isinstance(self.layer, nn.Conv2d) else -1] = -1
            y = torch.where(mask.view(shape), y, y.detach())
        return y


def grads(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_frozen_rows_zero(layer):
    for name, parameter, dim in layer.neuron_parameters():
        rows = parameter.grad.index_select(dim, layer.active.frozen.to(parameter.device))
        assert (rows == 0).all(), name


def net(propagate="all", index=(1, 4)):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2),
        nn.Flatten(), nn.Linear(24, 7), nn.LayerNorm(7), nn.Linear(7, 5),
    )  # fmt: skip
    model = neq.convert(model, propagate=propagate)
    neq.set_active(model, {name: list(index) for name in neq.get_active(model)})
    return model


def images(seed=0):
    return randn((4, 3, 6, 6), torch.float32, seed)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
