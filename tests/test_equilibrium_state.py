"""Saving and resuming: the next epochs are bit-identical to the uninterrupted ones."""

import copy

import pytest
import torch
from torch import nn

import neq_kernels as neq
from neq_kernels.equilibrium import Equilibrium
from neq_kernels.equilibrium.probe import digest
from neq_kernels.equilibrium.selectors import Rounded, Velocity

EPSILON = 1e-2


def net(width=6):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(True),
        nn.Conv2d(width, 8, 3), nn.BatchNorm2d(8), nn.ReLU(True), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


class Run:
    """A training run: its model, optimizer and tracker, made anew as a new process would."""

    def __init__(self, model_seed, **arguments):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(96, 1, 8, 8, generator=generator)
        self.labels = torch.randint(10, (96,), generator=generator)
        torch.manual_seed(model_seed)
        self.model = neq.convert(net())
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9)
        arguments = {"selector": Velocity(EPSILON)} | arguments
        self.tracker = Equilibrium(self.model, self.images[:32].split(16), **arguments)

    def epoch(self):
        self.model.train()
        for x, y in zip(self.images[32:].split(16), self.labels[32:].split(16), strict=True):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
        return self.tracker.update()

    def parts(self):
        return {"model": self.model, "optimizer": self.optimizer, "tracker": self.tracker}


def test_a_resumed_run_is_bit_identical(tmp_path):
    run = Run(1)
    run.tracker.update()
    run.epoch(), run.epoch()
    parts = {name: part.state_dict() for name, part in run.parts().items()}
    torch.save(parts, tmp_path / "run.pt")
    parts = torch.load(tmp_path / "run.pt", weights_only=True)
    resumed = Run(2, momentum=0.1, warmup=7)
    for name, part in resumed.parts().items():
        part.load_state_dict(parts[name])
    assert neq.get_active(resumed.model) == neq.get_active(run.model)
    for _ in range(2):
        expected, got = run.epoch(), resumed.epoch()
        assert got.layers == expected.layers
        assert 0 < got.frozen < got.neurons
        assert (got.epoch, got.excluded, got.head) == (expected.epoch, ("7",), "7")
        for name, value in run.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], value), name
    states = [r.tracker.state_dict() for r in (run, resumed)]
    histories = [state.pop("history") for state in states]
    assert digest(states[0]) == digest(states[1])
    for one, other in zip(*histories, strict=True):
        assert one["layers"] == other["layers"]
        assert torch.equal(one["active"], other["active"])
        assert torch.equal(one["velocities"], other["velocities"])


def test_the_state_is_a_snapshot():
    run = Run(1)
    run.tracker.update()
    state = run.tracker.state_dict()
    before = digest(state)
    run.epoch(), run.epoch()
    assert digest(state) == before
    other = Run(1)
    other.tracker.load_state_dict(state)
    other.epoch(), other.epoch()
    assert digest(state) == before


def test_sets_of_excluded_layers_are_restored_too():
    run = Run(1, exclude="7")
    run.model[7].set_active([3, 5])
    other = Run(1, exclude="7")
    other.tracker.load_state_dict(run.tracker.state_dict())
    assert other.model[7].active.index.tolist() == [3, 5]


def test_a_state_from_before_the_first_update():
    run, other = Run(1), Run(1)
    other.tracker.load_state_dict(run.tracker.state_dict())
    assert other.tracker.update().layers == run.tracker.update().layers


def test_the_probe_must_be_the_saved_one():
    run, other = Run(1), Run(1)
    run.tracker.update()
    other.images.add_(1)
    other.tracker.load_state_dict(run.tracker.state_dict())
    with pytest.raises(ValueError, match="batch 0 differs from the last pass"):
        other.tracker.update()


def test_the_state_is_the_same_for_a_compiled_model():
    run = Run(1)
    run.tracker.update()
    model = neq.convert(net())
    tracker = Equilibrium(
        torch.compile(model, backend="eager"), [run.images[:16]], selector=Velocity(EPSILON)
    )
    tracker.load_state_dict(run.tracker.state_dict())
    assert tracker.epoch == run.tracker.epoch


OTHER = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))


class Counting(Velocity):
    """Another kind of selector."""


def broken(**changes):
    def change(state):
        state.update(changes)

    return change


def unusable(state):
    state["selector"]["state"]["epsilon"] = -1


def shorten(state):
    state["states"]["0"]["track"]["velocity"] = torch.zeros(3)


def spoil(state):
    state["states"]["0"]["outputs"] = [1]


@pytest.mark.parametrize(
    ("model", "arguments", "change", "message"),
    [
        (net(4), {}, broken(), "expected 4 neurons in layer '0', got 6; load the state into"),
        (OTHER, {}, broken(), r"without \[\] and with the unknown \['3', '4', '7'\]"),
        (nn.Sequential(*net(), nn.LayerNorm(10)), {}, broken(), r"without \['8'\] and .* \[\]"),
        (nn.Sequential(net(), nn.Linear(10, 2)), {}, broken(), r"without \['0.0', '0.1'"),
        (net(), {"exclude": "7"}, broken(), r"exclude=\['7'\] as in .* got exclude=None"),
        (
            net(),
            {"selector": Counting(EPSILON)},
            broken(),
            r"Counting\(.* Velocity\(epsilon=0.01\)",
        ),
        (
            net(),
            {"selector": Velocity(0.5)},
            broken(),
            r"\(epsilon=0.5\) .*y\(epsilon=0.01\); make",
        ),
        (
            net(),
            {"selector": Rounded(Velocity(EPSILON), 4)},
            broken(),
            r"selector Rounded\(Velocity\(epsilon=0.01\), multiple=4\) as it is here, got one with",
        ),
        (net(), {}, broken(definition="reference"), "definition='paper' .* got .*'reference'"),
        (net(), {}, broken(version=0), "of this version"),
        (net(), {}, lambda state: state.pop("states"), "what Equilibrium.state_dict"),
        (net(), {}, shorten, "for layer '0'"),
        (net(), {}, spoil, "expected tensors as outputs of layer '0'"),
        (net(), {}, unusable, "epsilon: expected a number >= 0"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(model, arguments, change, message):
    run = Run(1)
    run.tracker.update()
    run.epoch(), run.epoch()
    state = copy.deepcopy(run.tracker.state_dict())
    change(state)
    arguments = {"selector": Velocity(EPSILON)} | arguments
    tracker = Equilibrium(neq.convert(copy.deepcopy(model)), [run.images[:16]], **arguments)
    before = digest(tracker.state_dict())
    with pytest.raises(ValueError, match=message):
        tracker.load_state_dict(state)
    assert digest(tracker.state_dict()) == before


def test_not_a_state_at_all():
    with pytest.raises(
        ValueError, match=r"what Equilibrium.state_dict\(\) of this version returned"
    ):
        Run(1).tracker.load_state_dict([])


def test_a_selector_without_state():
    def all_active(scores):
        return {name: torch.ones(len(s.velocity), dtype=torch.bool) for name, s in scores.items()}

    run, other = Run(1, selector=all_active), Run(1, selector=all_active)
    run.tracker.update()
    other.tracker.load_state_dict(run.tracker.state_dict())
    assert other.tracker.state_dict()["selector"] == {
        "name": "function", "settings": {}, "state": None,
    }  # fmt: skip
