"""Compiled and distributed models are measured like plain ones."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import neq_kernels as neq
from neq_kernels.equilibrium import Equilibrium

# Dynamo instantiates autograd functions while it traces them, and torch warns of that.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return neq.convert(
        nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.ReLU(True), nn.Linear(5, 2))
    )


def drift(model):
    with torch.no_grad():
        model[0].weight[1:3] += 1


def velocities(report):
    return [(row.name, row.velocity, row.frozen) for row in report.layers]


@pytest.fixture(scope="module")
def expected():
    model = net()
    tracker = Equilibrium(model, [X], warmup=0)
    tracker.update()
    drift(model)
    return velocities(tracker.update())


def wrapped(model):
    return torch.compile(model, backend="aot_eager")


def in_place(model):
    model.compile(backend="aot_eager")
    return model


def inside(model):
    model[0] = torch.compile(model[0], backend="aot_eager")
    return model


@pytest.mark.parametrize("compiled", [wrapped, in_place, inside])
@pytest.mark.parametrize("run_before", [False, True])
def test_compiled_models_are_measured_in_eager(compiled, run_before, expected):
    inner = net()
    model = compiled(inner)
    if run_before:  # compiled without our hooks, so that they would not fire
        model(X)
    tracker = Equilibrium(model, [X], warmup=0)
    tracker.update()
    with torch.no_grad():
        inner.get_submodule("0._orig_mod" if compiled is inside else "0").weight[1:3] += 1
    got = velocities(tracker.update())
    assert [row[1:] for row in got] == [row[1:] for row in expected]
    assert got[0][2] == 3


@pytest.mark.parametrize("in_place", [False, True])
def test_measuring_recompiles_nothing(in_place):
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = inner = net()
    if in_place:
        model.compile(backend=backend, fullgraph=True)
    else:
        model = torch.compile(inner, backend=backend, fullgraph=True)
    model(X)
    once = len(compilations)
    tracker = Equilibrium(model, [X], warmup=0)
    for _ in range(4):
        tracker.update()
        drift(inner)
        model(X)
    assert once == len(compilations) == 1


def test_distributed_data_parallel_is_measured_inside(monkeypatch, expected):
    """No rank waits for another: reducer and broadcast of buffers stay out of it."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        inner = net()
        model = DistributedDataParallel(inner)
        tracker = Equilibrium(model, [X], warmup=0)
        with monkeypatch.context() as patch:
            patch.setattr(DistributedDataParallel, "forward", None)
            tracker.update()
            drift(inner)
            assert velocities(tracker.update()) == expected
        model(X).sum().backward()
        frozen = inner[0].active.frozen
        assert frozen.numel() == 3
        assert inner[0].weight.grad[frozen].count_nonzero() == 0
    finally:
        dist.destroy_process_group()
