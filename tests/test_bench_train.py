"""bench.train on a network of two layers: providers train, ceilings are what they say."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import neq_kernels as neq
from bench import train
from bench.models import NETWORKS, Network

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(),
        nn.Linear(16, 8), nn.Linear(8, 3),
    )  # fmt: skip


TINY = Network(
    "tiny", tiny, lambda: torch.randn(4, 2, 4, 4),
    lambda model, x: F.cross_entropy(model(x), torch.arange(4) % 3), ("contiguous",), 0.8,
)  # fmt: skip


def test_sets_leave_the_head_alone():
    sets = train.draw(tiny(), "random", 0.25)
    assert {name: active.count for name, active in sets.items()} == {"0": 2, "3": 1, "5": 2}
    assert train.draw(tiny(), "random", 0.25) == sets


def test_a_prefix_is_frozen_whole():
    sets = train.draw(tiny(), "prefix", 1 / 3)
    assert [active.count for active in sets.values()] == [0, 0, 8]
    assert [active.count for active in train.draw(tiny(), "prefix", 1.0).values()] == [8, 4, 8]


def test_shares_of_multiplications():
    sets = train.draw(tiny(), "random", 0.25)
    first, second, third = 2 * 2 * 8 * 18, 2 * 2 * 4 * 8, 16 * 8
    expected = (first + second + third) / 4 / (first + second + third)
    assert train.wgrad_share(tiny(), TINY.batch(), sets) == pytest.approx(expected)


@pytest.mark.parametrize(("pattern", "share"), [("random", 1.0), ("random", 0.25), ("prefix", 0.5)])
def test_every_provider_steps_and_only_active_neurons_move(pattern, share):
    model, batch = tiny(), TINY.batch()
    sets = train.draw(model, pattern, share)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for name, one in train.contenders(model, pattern, share).items():
        for _ in range(2):
            backward, step = one.step(TINY, batch)
            assert 0 < backward < step
        after = dict(one.model.named_parameters())
        assert not torch.equal(after["6.weight"], before["6.weight"]), name
        for layer, active in sets.items():
            moved = (after[f"{layer}.weight"] != before[f"{layer}.weight"]).flatten(1).any(1)
            if name in train.OURS:
                assert not moved[active.frozen].any(), name
            if name == "masked":
                assert not one.model.get_submodule(layer).weight.grad[active.frozen].any()


def test_gradients_of_the_exact_providers_agree():
    model, batch = tiny(), TINY.batch()
    made = train.contenders(model, "random", 0.25)
    for one in made.values():
        one.step(TINY, batch)
    grads = {
        name: [p.grad for p in one.model.parameters()]
        for name, one in made.items()
        if name in ("masked", "naive", "ours, propagate=all")
    }
    for name in ("naive", "ours, propagate=all"):
        torch.testing.assert_close(grads[name], grads["masked"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(8, 6), (2, 5, 8)), (nn.Linear(8, 6, bias=False), (5, 8)),
     (nn.Conv2d(4, 6, 3, bias=False), (2, 4, 5, 5))],
    ids=["3d", "linear without bias", "conv without bias"],
)  # fmt: skip
def test_naive_layers_of_whole_networks(layer, shape):
    x, active = torch.randn(shape), [1, 4]
    sets = {"0": neq.ActiveSet.from_index(active, 6)}
    gradients = []
    for one in (train.masked(nn.Sequential(layer), sets), train.naive(nn.Sequential(layer), sets)):
        one.model(x).square().sum().backward()
        if one.after:
            one.after()
        gradients.append([p.grad for p in one.model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_rows():
    rows = train.measure(TINY, "contiguous", "random", 0.25, rounds=2)
    assert {row.operator for row in rows} == {"whole backward", "whole step"}
    assert len(rows) == 2 * 7
    by_name = {row.provider: row for row in rows if row.operator == "whole backward"}
    dense, off, ours = (by_name[n] for n in ("dense", "wgrad off", "ours, propagate=all"))
    ceiling = off.ms + 0.25 * max(0.0, dense.ms - off.ms)
    assert ours.ceiling_ms == pytest.approx(ceiling, rel=0.05)
    assert ours.ceiling_share == pytest.approx(ours.ceiling_ms / ours.ms)
    assert by_name["masked"].ceiling_ms is None


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_layers_to_freeze(name):
    if name != "ResNet-32":
        pytest.importorskip("transformers")
    with torch.device("meta"):
        model = NETWORKS[name].make()
    neq.convert(model)
    assert len(neq.get_active(model)) > 10
