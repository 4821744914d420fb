"""What is remembered between passes: the same velocities from outputs, halves and weights."""

import pytest
import torch
from equilibrium_net import X, frozen, make, rows
from torch import nn

import neq_kernels as neq
from neq_kernels.equilibrium import Equilibrium, Memory
from neq_kernels.equilibrium.memory import Kept, Store, power_of_two_above

CPU = torch.device("cpu")
HALF = Memory("outputs", dtype=torch.float16)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(True), nn.Conv2d(6, 5, 3), nn.Flatten(2),
        nn.Linear(16, 7), nn.LayerNorm(7), nn.Flatten(), nn.Linear(35, 3),
    )  # fmt: skip


class Spy(neq.selectors.Velocity):
    def __call__(self, scores):
        self.seen = {name: s.velocity for name, s in scores.items()}
        return super().__call__(scores)


def run(memory, definition="paper", resume_at=None):
    """The velocities of six epochs in which weights and running statistics move."""
    model = neq.convert(net())
    generator = torch.Generator().manual_seed(1)
    probe = list(torch.randn(3, 12, 2, 8, 8, generator=generator))

    def make():
        arguments = dict(selector=Spy(1e-2), definition=definition, warmup=0, memory=memory)
        return Equilibrium(model, probe, **arguments)

    tracker, seen = make(), []
    for epoch in range(7):
        report = tracker.update()
        if epoch:
            seen.append(torch.cat(list(tracker.selector.seen.values())))
        if epoch == resume_at:
            state = tracker.state_dict()
            tracker = make()
            tracker.load_state_dict(state)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator) * 0.3 ** (epoch + 1)
            model.train()
            model(torch.randn(8, 2, 8, 8, generator=generator))
    return torch.stack(seen), report


@pytest.mark.parametrize("definition", ["paper", "reference"])
@pytest.mark.parametrize("resume_at", [None, 3])
@pytest.mark.parametrize(("memory", "tolerance"), [("weights", 1e-5), (HALF, 1e-4)])
def test_the_same_velocities_from_all(memory, tolerance, definition, resume_at):
    expected, report = run("outputs", definition)
    assert report.remembered.startswith("host, ")
    got, report = run(memory, definition, resume_at)
    assert report.remembered.startswith("weights" if memory == "weights" else "host half")
    assert expected.abs().amax() > 0.01
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(1, 40), (2, 40)])
def test_one_or_two_values_per_channel_are_not_halved(shape):
    """Of a cosine of two values, the two roundings can shift more than 1e-4."""
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(shape, generator=generator)
    store = Store(HALF, CPU)
    kept = store.keep(output, 1)
    assert torch.equal(kept.output(CPU), output)
    assert store.nbytes == output.nbytes
    store.keep(torch.randn(3, 40, generator=generator), 1)
    assert store.nbytes == output.nbytes + 2 * 3 * 40


def test_weights_hold_no_outputs():
    _, tracker = make(memory="weights")
    tracker.update()
    assert all(not layer["outputs"] for layer in tracker.state_dict()["states"].values())
    assert "remembered: weights, " in str(tracker.update())


def size_of(model_outputs, passes=2):
    return passes * sum(model_outputs) * 4 * len(X)


@pytest.mark.parametrize(
    ("spare", "dtype", "level"),
    [(0, None, "host"), (-1, None, "host half"), (0, torch.float16, "host half"),
     (-1, torch.float32, "weights")],
)  # fmt: skip
def test_the_budget_decides(spare, dtype, level):
    """body, norm, spare and the head, not yet known as such: 17 floats a sample."""
    memory = Memory("auto", host=size_of([17]) + spare, dtype=dtype)
    model, tracker = make(memory=memory, warmup=0)
    assert tracker.update().remembered.startswith(level + ",")
    with torch.no_grad():
        model.body.weight[1] *= -1
        model.body.bias[1] *= -1
    tracker.update()
    assert model.body.active.index.tolist() == [1]


def test_what_does_not_fit_changes_nothing():
    _, tracker = make(memory=Memory("outputs", host=100), warmup=0)
    with pytest.raises(ValueError, match=r"within Memory.* raise the budgets, .* memory=.weights"):
        tracker.update()
    assert tracker.state_dict()["passes"] == 0
    assert tracker.history[:] == []


def test_outputs_that_grow_are_compared_before_they_go():
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.fixed, self.repeated = nn.Linear(3, 4), nn.Linear(3, 4)
            self.times = 1

        def forward(self, x):
            self.fixed(x)
            for _ in range(self.times):
                self.repeated(x)

    memory = Memory("auto", host=size_of([8]))
    model, tracker = make(Growing(), memory=memory, warmup=0, exclude=())
    tracker.update()
    assert tracker.update().remembered.startswith("host,")
    model.times = 9
    report = tracker.update()
    assert report.remembered.startswith("weights")
    assert rows(report)["fixed"].reason is None
    assert rows(report)["repeated"].reason.startswith("calls vary")
    assert rows(tracker.update())["repeated"].reason is None


@pytest.mark.parametrize("memory", ["outputs", "weights", HALF])
def test_nan_starts_over(memory):
    model, tracker = make(memory=memory, warmup=0)
    tracker.update()
    with torch.no_grad():
        model.spare.bias[1] = float("nan")
    with pytest.warns(UserWarning, match="layer 'spare'"):
        tracker.update()
    with torch.no_grad():
        model.spare.bias[1] = 0
    assert rows(tracker.update())["spare"].reason.startswith("starts over")
    tracker.update()
    assert frozen(model)["spare"] == 5


class Eccentric(nn.Module):
    """Changes buffers in eval mode, in place and by other ones, and uses them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("swapped", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.swapped = self.swapped + 1
        return self.layer(x * self.calls + self.swapped)


def test_the_model_of_then_leaves_no_trace():
    model, tracker = make(Eccentric(), [X, X + 1], memory="weights", exclude=(), warmup=0)
    loss = model(X).sum()
    graph = [(id(p), p.data_ptr(), p._version) for p in model.parameters()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    tracker.update()
    assert tracker.update().frozen == 4  # batches meet the same buffers in both networks
    assert [(id(p), p.data_ptr(), p._version) for p in model.parameters()] == graph
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name])
    assert model.swapped is model._buffers["swapped"]
    model.layer.set_active(None)
    loss.backward()
    assert model.layer.weight.grad.any()
    saved = tracker.state_dict()["memory"]["snapshot"]
    assert saved["calls"] == values["calls"]


def test_an_error_of_the_model_of_then_leaves_no_trace():
    model, tracker = make(memory="weights")
    tracker.update()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = []

    def fail(module, inputs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("boom")

    with torch.no_grad():
        model.body.weight.add_(1), before["body.weight"].add_(1)
    handle = model.body.register_forward_pre_hook(fail)
    with pytest.raises(KeyError, match="boom"):
        tracker.update()
    handle.remove()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert tracker.epoch == 0
    tracker.update()


def test_a_snapshot_of_another_model_is_refused():
    _, tracker = make(memory="weights")
    tracker.update()
    state = tracker.state_dict()
    state["memory"]["snapshot"]["head.weight"] = torch.zeros(1)
    _, other = make(memory="weights")
    with pytest.raises(ValueError, match="expected weights of the shapes of this model"):
        other.load_state_dict(state)
    assert other.state_dict()["passes"] == 0


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_halves_are_right_to_a_rounding_at_any_size(scale):
    output = torch.randn(5, 3, 4) * scale * torch.tensor([1.0, 1e3, 1e-3])[:, None]
    output[:, 1] = 0
    kept = Kept.of(output)
    kept.to("host half", CPU, 1)
    assert kept.values.dtype == torch.float16
    largest = output.abs().amax((0, 2), keepdim=True)
    error = (kept.output(CPU) - output).abs()
    assert (error <= 2**-11 * output.abs() + 2**-25 * 2 * largest).all()


def test_the_scale_is_a_power_of_two_above():
    values = torch.tensor([[1.0, -3.0, 0.0, 4.0]])
    assert power_of_two_above(values, 1).tolist() == [[2.0, 4.0, 1.0, 8.0]]


def test_half_precision_outputs_stay_what_they_are():
    store = Store(HALF, CPU)
    output = torch.randn(4, 3).bfloat16()
    kept = store.keep(output, -1)
    assert torch.equal(kept.output(CPU), output)
    assert (kept.values.dtype, store.nbytes) == (torch.bfloat16, output.nbytes)


def test_a_device_is_tried_first():
    budgets = Memory(device=20, host=40).budgets(torch.device("cuda"))
    assert list(budgets.items()) == [
        ("device", 10), ("host", 20), ("device half", 10), ("host half", 20),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make_it", "error", "message"),
    [
        (lambda: Memory("disk"), ValueError, "memory: expected one of auto, outputs, weights, got"),
        (lambda: Memory(host=-1), ValueError, "host: expected a budget in bytes >= 0, got -1"),
        (lambda: Memory(dtype=torch.int8), ValueError, "dtype: expected"),
        (lambda: make(memory=3), TypeError, "memory: expected one of .* got int"),
    ],
)
def test_says_what_is_wrong(make_it, error, message):
    with pytest.raises(error, match=message):
        make_it()
