"""Who freezes and thaws, and when."""

import dataclasses

import pytest
import torch
from equilibrium_net import Net, X, frozen, make, rows
from torch import nn

import neq_kernels as neq
from neq_kernels.equilibrium.selectors import Velocity


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_warmup(warmup):
    """The update after epoch t >= warmup may freeze; nothing changes here, so all freezes."""
    model, tracker = make(warmup=warmup)
    for epoch in range(6):
        report = tracker.update()
        assert report.epoch == tracker.epoch == epoch
        assert report.warming_up == (0 < epoch < warmup)
        assert report.frozen == sum(frozen(model).values())
        assert report.frozen == (15 if epoch >= max(1, warmup) else 0)
        assert ("recorded only" in str(report)) == (epoch == 0)


def test_the_first_update_only_records():
    model, tracker = make(warmup=2)
    model.body.set_active([0])
    report = tracker.update()
    assert frozen(model)["body"] == 4
    assert rows(report)["body"].frozen == 4
    assert rows(report)["body"].velocity is None
    tracker.update()
    assert frozen(model)["body"] == 0


def test_conv_and_batch_norm_channels_are_neurons_of_their_own():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(True))
    _, tracker = make(model, [torch.randn(2, 1, 5, 5)], warmup=0)
    tracker.update()
    with torch.no_grad():
        model[1].weight[1] = -1
    tracker.update()
    assert neq.get_active(model)["0"].count == 0
    assert neq.get_active(model)["1"].index.tolist() == [1]


def test_frozen_neurons_thaw():
    model, tracker = make(warmup=0)
    tracker.update(), tracker.update()
    assert frozen(model)["body"] == 5
    with torch.no_grad():
        model.body.weight[2].neg_()
    report = tracker.update()
    assert model.body.active.index.tolist() == [2]
    assert rows(report)["body"].frozen == 4


@pytest.mark.parametrize("inplace", [False, True])
def test_outputs_are_taken_before_the_activation(inplace):
    """A negative pre-activation that flips its sign vanishes behind a ReLU."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(inplace))
    with torch.no_grad():
        model[0].weight.fill_(-1)
    _, tracker = make(model, [torch.ones(2, 1)], exclude=())
    tracker.update()
    with torch.no_grad():
        model[0].weight.fill_(-2)
    assert rows(tracker.update())["0"].velocity == pytest.approx(0, abs=1e-12)
    with torch.no_grad():
        model[0].weight.fill_(3)
    assert rows(tracker.update())["0"].velocity == pytest.approx(2)


def test_a_set_that_stays_does_not_invalidate_a_graph():
    model, tracker = make(warmup=0)
    model.spare.set_active([1])
    tracker.update()
    model.body.set_active([0])  # not what update() chooses
    loss = model(X.clone().requires_grad_()).sum()
    tracker.update()
    tracker.update()
    with pytest.raises(RuntimeError):
        loss.backward()
    loss = model(X.clone().requires_grad_()).sum()
    tracker.update()
    loss.backward()


@dataclasses.dataclass
class Output:
    logits: torch.Tensor


@pytest.mark.parametrize(
    "wrap", [lambda y: {"logits": y}, Output, lambda y: (y, None), lambda y: None]
)
def test_any_output_of_the_model(wrap):
    class Wrapped(Net):
        def forward(self, x, labels=None):
            return wrap(super().forward(x))

    _, tracker = make(Wrapped(), [{"x": X, "labels": X}], warmup=0)
    tracker.update()
    assert tracker.update().frozen == 15


def test_layouts():
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(9, 4))
    make(model, [torch.randn(2, 2, 5)], exclude=())[1].update()
    model = nn.Sequential(nn.Conv2d(2, 3, 2))
    _, tracker = make(model, [torch.randn(2, 3, 3)], warmup=0)
    tracker.update()
    with torch.no_grad():
        model[0].weight[1].neg_()
        model[0].bias[1].neg_()
    tracker.update()
    assert model[0].active.index.tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    _, tracker = make(Net().to(dtype), [X.to(dtype)], warmup=0)
    tracker.update()
    assert tracker.update().frozen == 15
    (output,) = tracker.state_dict()["states"]["body"]["outputs"]
    assert output.dtype == dtype


def test_report_times():
    _, tracker = make()
    assert tracker.update().share is None
    report = tracker.update()
    assert 0 < report.seconds < 60
    assert 0 < report.share <= 1


def test_default_selector():
    _, tracker = make()
    assert isinstance(tracker.selector, Velocity)
    assert tracker.selector.epsilon == 1e-3


def test_selector_sees_measured_layers_and_decides():
    seen = []

    def freeze_first(scores):
        seen.append(scores)
        return {name: torch.arange(len(s.velocity)) > 0 for name, s in scores.items()}

    model, tracker = make(selector=freeze_first, warmup=2)
    model.use_spare = False
    for _ in range(4):
        tracker.update()
    assert len(seen) == 2
    assert set(seen[0]) == {"body", "norm"}
    assert frozen(model) == {"head": 0, "body": 1, "norm": 1, "spare": 0}
    first, second = (scores["body"] for scores in seen)
    assert (first.parameters, first.kind, first.epoch) == (4, "Linear", 2)
    assert (seen[0]["norm"].parameters, seen[0]["norm"].kind) == (2, "LayerNorm")
    assert first.active.tolist() == [True] * 5
    assert second.active.tolist() == [False] + [True] * 4


def test_a_selector_that_errs_changes_nothing():
    model, tracker = make(selector=lambda scores: {}, warmup=0)
    tracker.update()
    with pytest.raises(ValueError, match="expected masks for exactly"):
        tracker.update()
    assert tracker.epoch == 0
    assert sum(frozen(model).values()) == 0


def test_a_selector_cannot_spoil_the_scores():
    def spoil(scores):
        masks = {name: s.velocity.abs() >= 1e-3 for name, s in scores.items()}
        for layer in scores.values():
            layer.velocity.fill_(7), layer.similarity.fill_(7), layer.active.fill_(False)
        return masks

    _, tracker = make(selector=spoil, warmup=0)
    tracker.update(), tracker.update()
    assert rows(tracker.update())["body"].velocity == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("flush_denormals", [False, True])
def test_definitions_differ_at_the_border(flush_denormals, request):
    """Nothing moves: v = 0, which with epsilon = 0 "reference" freezes and "paper" does not.

    In whole numbers: a forward's roundings may change from call to call with its memory's place."""
    torch.set_flush_denormal(flush_denormals)
    request.addfinalizer(lambda: torch.set_flush_denormal(False))
    for definition, expected in (("paper", 0), ("reference", 5)):
        model, tracker = make(
            probe=[torch.tensor([[1.0, 2, 3], [3, -1, 2]])],
            selector=Velocity(0),
            definition=definition,
        )
        with torch.no_grad():
            model.body.weight.copy_(torch.arange(15.0).view(5, 3) - 7)
            model.body.bias.fill_(1)
        tracker.update()
        tracker.update()
        assert frozen(model)["body"] == expected


def test_a_selector_may_choose_for_the_first_epoch():
    fixed = {"body": torch.tensor([True, False, True, False, True])}
    for warmup, expected in ((0, 2), (1, 0)):
        model, tracker = make(selector=neq.selectors.Fixed(fixed), warmup=warmup)
        tracker.update()
        assert frozen(model)["body"] == expected
        tracker.update()
        assert frozen(model)["body"] == 2
    model, tracker = make(selector=neq.selectors.ParameterBudget(0.5, first="random"), warmup=0)
    tracker.update()
    assert 0 < sum(frozen(model).values()) < 15
    assert frozen(model)["head"] == 0


def test_wrappers_save_and_go_on_with_the_tracker():
    def run(updates, state=None):
        selector = neq.selectors.Rounded(neq.selectors.Random(0.5, seed=2), 2)
        model, tracker = make(selector=selector)
        if state is not None:
            tracker.load_state_dict(state)
        for _ in range(updates):
            tracker.update()
        return neq.get_active(model), tracker.state_dict()

    whole, _ = run(4)
    _, state = run(3)
    assert run(1, state)[0] == whole
