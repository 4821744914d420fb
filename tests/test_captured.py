"""A captured graph follows the set while it stays within what was captured, and others are refused.

On the CPU operations are recorded and called again (tests/graphs.py); on a GPU these are real.
"""

import copy

import pytest
import torch
from cases import (
    CONV,
    LINEAR,
    NORM,
    assert_exact,
    by_name,
    conv1d_columns,
    gradients,
    inside,
    randn,
)
from graphs import capture
from torch import nn

import neq_kernels as neq

pytestmark = pytest.mark.usefixtures("one_thread", "device")

CASES = {
    "linear": by_name(LINEAR, "blocks"),
    "columns": conv1d_columns(by_name(LINEAR, "blocks")),
    "conv": by_name(CONV, "pointwise"),
    "conv-no-bias": by_name(CONV, "no-bias"),
    "conv-1d": by_name(CONV, "1d"),
    "depthwise": by_name(CONV, "depthwise"),
}
NORMS = {name: by_name(NORM, name) for name in ("2d", "layer", "rms")}


class Step:
    """A layer's forward and backward on inputs that stay where they are."""

    def __init__(self, layer, case):
        self.layer = layer
        self.x = case.x().detach().requires_grad_()
        with torch.no_grad():
            self.dy = randn(layer(self.x).shape, torch.float32, 3)

    def __call__(self):
        self.x.grad = None
        self.layer.zero_grad()
        self.layer(self.x).backward(self.dy)

    def found(self):
        return {"x": self.x.grad, **{name: p.grad for name, p in self.layer.named_parameters()}}


def sets(size, most):
    """From one neuron to as many as were captured, each bucket's ends among them."""
    for count in sorted({1, 2, most // 2, most - 1, most} - {0, size}):
        shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(count))
        yield sorted(shuffled[:count].tolist())


@pytest.mark.parametrize("propagate", ["all", "active"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_replays_follow_the_set(case, propagate, backend, path, device, monkeypatch):
    if case is CASES["depthwise"] and (path != "dense" or propagate == "active"):
        pytest.skip("groups are laid out anew on the host: the rule never packs them on a GPU")
    layer = inside(case.layer(), propagate)
    layer.set_active([2, 3, 7])
    step = Step(layer, case)
    graph = capture(step, device, monkeypatch)
    for index in sets(layer.size, min(8, layer.size)):
        layer.set_active(index)
        graph.replay()
        assert_exact(case.layer(), step.x, step.dy, index, propagate, step.found())


@pytest.mark.parametrize("case", NORMS.values(), ids=NORMS)
def test_replays_of_norms_follow_any_set(case, device, monkeypatch):
    plain = case.layer()
    layer = inside(copy.deepcopy(plain))
    layer.set_active([2, 3])
    step = Step(layer, case)
    graph = capture(step, device, monkeypatch)
    for index in (*sets(layer.size, layer.size - 1), list(range(layer.size)), []):
        layer.set_active(index)
        graph.replay()
        expected = gradients(plain, step.x, step.dy)
        for name, gradient in step.found().items():
            mask = layer.active.mask().to(gradient.device)
            wanted = expected[name] if name == "x" else torch.where(mask, expected[name], 0)
            torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize(
    ("captured", "refused", "message"),
    [
        ([1, 2, 3], range(9), "at most 8 active .* got 9"),
        ([1, 2, 3], None, "at most 8 active .* got 37"),
        (None, range(36), "all 37 active .* got 36"),
        ([], [1], "at most 0 active .* got 1"),
    ],
    ids=["more", "all", "fewer than all", "some after none"],
)
@pytest.mark.parametrize("kind", ["linear", "model"])
def test_a_set_beyond_the_captured_ones_is_refused(
    captured, refused, message, kind, device, monkeypatch
):
    case = CASES["linear"]
    model = nn.Sequential(case.layer(), nn.Linear(37, 3))
    neq.convert(model)
    model[0].set_active(captured)
    capture(Step(model, case), device, monkeypatch)
    before = neq.get_active(model)
    chosen = refused if refused is None else list(refused)
    with pytest.raises(RuntimeError, match=message + ".*forget_graphs"):
        if kind == "linear":
            model[0].set_active(chosen)
        else:
            neq.set_active(model, {"1": [0, 1, 2], "0": chosen})
    assert neq.get_active(model) == before
    model[0].forget_graphs()
    model[0].set_active(chosen)
    assert model[0].active.count == (37 if chosen is None else len(chosen))


def test_neurons_that_pruning_gives_back_are_refused_too(device, monkeypatch):
    case = CASES["linear"]
    layer = inside(case.layer())
    layer.set_kept(neq.ActiveSet.from_index([1, 2, 3], 37))
    capture(Step(layer, case), device, monkeypatch)
    with pytest.raises(RuntimeError, match="at most 8"):
        layer.set_kept(None)
    assert layer.kept.count == layer.active.count == 3
    layer.set_kept(neq.ActiveSet.from_index(list(range(8)), 37))
    assert layer.active.count == 8


def test_two_graphs_allow_what_both_serve(device, monkeypatch):
    case = CASES["linear"]
    layer = inside(case.layer())
    for count in (20, 5):
        layer.set_active(range(count))
        capture(Step(layer, case), device, monkeypatch)
    with pytest.raises(RuntimeError, match="at most 8"):
        layer.set_active(range(9))


def test_what_is_captured_without_gradients_binds_nobody(device, monkeypatch):
    case = CASES["linear"]
    layer = inside(case.layer())
    x = case.x()

    @torch.no_grad()
    def run():
        layer(x)

    capture(run, device, monkeypatch)
    layer.set_active([1])


def test_a_copy_is_not_bound(device, monkeypatch):
    case = CASES["linear"]
    layer = inside(case.layer())
    layer.set_active([1])
    capture(Step(layer, case), device, monkeypatch)
    copy.deepcopy(layer).set_active(None)
