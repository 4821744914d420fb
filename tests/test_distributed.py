"""Two gloo processes measure as one: each with its part of the probe, both with the same sets."""

import pytest
import torch
from ranks import Ranks
from torch import nn

import neq_kernels as neq
from neq_kernels.distributed import Peers

X = torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(0))
PARTS = (X[:4].split(4), X[4:].split(3))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    ranks = Ranks(tmp_path_factory.mktemp("equilibrium"))
    yield ranks
    ranks.stop()


class Spy(neq.selectors.Velocity):
    def __call__(self, scores):
        self.seen = {name: s.velocity for name, s in scores.items()}
        return super().__call__(scores)


def make(probe, **arguments):
    torch.manual_seed(0)
    model = neq.convert(
        nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(True), nn.Flatten(), nn.Linear(96, 4),
            nn.LayerNorm(4), nn.Linear(4, 3),
        )
    )  # fmt: skip
    arguments = dict(selector=Spy(0.02), warmup=0) | arguments
    return model, neq.Equilibrium(model, list(probe), **arguments)


def drift(model, generator):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.1


def measure(rank, probes, definition, memory):
    model, tracker = make(probes[rank], definition=definition, memory=memory)
    generator, velocities, sets = torch.Generator().manual_seed(1), [], []
    for epoch in range(5):
        tracker.update()
        if epoch:
            velocities.append(torch.cat(list(tracker.selector.seen.values())))
        sets.append({name: active.mask() for name, active in neq.get_active(model).items()})
        drift(model, generator)
    return torch.stack(velocities), sets


@pytest.mark.parametrize("definition", ["paper", "reference"])
@pytest.mark.parametrize("memory", ["outputs", "weights"])
def test_parts_of_a_probe_count_as_the_whole(ranks, definition, memory):
    first, second = ranks.run(measure, PARTS, definition, memory)
    expected, sets = measure(0, [[X]], definition, memory)
    assert torch.equal(first[0], second[0])
    torch.testing.assert_close(first[0], expected, rtol=0, atol=1e-6)
    for mine, other, alone in zip(first[1], second[1], sets, strict=True):
        for name in alone:
            assert torch.equal(mine[name], other[name])
            assert torch.equal(mine[name], alone[name])
    frozen = [sum(int((~mask).sum()) for mask in epoch.values()) for epoch in sets]
    assert 0 < sum(frozen) < 4 * 20


def measure_alone(rank):
    model, tracker = make(PARTS[rank], process_group=None)
    tracker.update()
    drift(model, torch.Generator().manual_seed(1))
    tracker.update()
    return torch.cat(list(tracker.selector.seen.values()))


def test_nothing_is_exchanged_if_so_wished(ranks):
    first, second = ranks.run(measure_alone)
    assert not torch.allclose(first, second, atol=1e-3)


def choose_apart(rank):
    """A selector that draws other numbers on every rank."""
    model, tracker = make(PARTS[rank], selector=neq.selectors.Random(0.5, seed=rank))
    tracker.update(), tracker.update()
    return {name: active.mask() for name, active in neq.get_active(model).items()}


def test_the_first_rank_chooses_for_all(ranks):
    first, second = ranks.run(choose_apart)
    assert all(torch.equal(first[name], second[name]) for name in first)
    model, tracker = make([X], selector=neq.selectors.Random(0.5, seed=0))
    tracker.update(), tracker.update()
    alone = neq.get_active(model)
    assert all(torch.equal(first[name], alone[name].mask()) for name in alone)


def nan_on_one(rank):
    probe = [part.clone() for part in PARTS[rank]]
    model, tracker = make(probe)
    tracker.update()
    if rank == 1:
        with torch.no_grad():
            model[4].bias[0] = float("nan")
        with pytest.warns(UserWarning, match="NaN or inf"):
            report = tracker.update()
    else:
        with pytest.warns(UserWarning, match="layer '4'"):
            report = tracker.update()
    reasons = {row.name: row.reason for row in report.layers}
    with torch.no_grad():
        model[4].bias[0] = 0
    again = tracker.update()
    return reasons, {row.name: row.reason for row in again.layers}


def test_what_one_rank_cannot_compare_nobody_freezes(ranks):
    first, second = ranks.run(nan_on_one)
    assert first == second
    assert first[0]["4"] == "NaN or inf in its outputs"
    assert first[0]["0"] is None
    assert first[1]["4"].startswith("starts over")


def other_calls_on_one(rank):
    class Repeats(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.times = nn.Linear(3, 3), 1

        def forward(self, x):
            for _ in range(self.times):
                x = self.layer(x)
            return x

    torch.manual_seed(0)
    model = neq.convert(Repeats())
    tracker = neq.Equilibrium(model, [torch.eye(3)], warmup=0, exclude=())
    tracker.update()
    model.times = 1 + rank
    first = tracker.update().layers[0]
    second = tracker.update().layers[0]
    return first.reason, second.reason, second.frozen


def test_a_problem_of_one_rank_is_named_on_all(ranks):
    first, second = ranks.run(other_calls_on_one)
    assert first == ("could not be compared on every rank", None, 3)
    assert second == ("calls vary between passes: 1, then 2", None, 3)


def fail_on_one(rank):
    """Each error, and that the tracker works on as if it had not been."""
    model, tracker = make(PARTS[rank])
    tracker.update()
    before = tracker.state_dict()["passes"]

    def fail(module, inputs):
        if rank == 1:
            raise KeyError("boom")

    handle = model[0].register_forward_pre_hook(fail)
    with pytest.raises(KeyError if rank else RuntimeError) as caught:
        tracker.update()
    handle.remove()
    assert tracker.state_dict()["passes"] == before

    def choose(scores):
        if rank == 1:
            raise OSError("no disk")
        return {name: s.active for name, s in scores.items()}

    tracker.selector = choose
    with pytest.raises(OSError if rank else RuntimeError):
        tracker.update()
    tracker.selector = neq.selectors.Velocity()
    return str(caught.value), tracker.update().frozen


def test_an_error_of_one_rank_is_one_of_all(ranks):
    first, second = ranks.run(fail_on_one)
    assert first[0].startswith("update(): failed on rank 1, whose error says why")
    assert first[1] == second[1] == 20


def update_at_other_times(rank):
    _, tracker = make(PARTS[rank])
    _, behind = make(PARTS[rank])
    tracker.update()
    with pytest.raises(ValueError, match="process_group: expected trackers of the same model"):
        (tracker if rank else behind).update()
    return tracker.update().epoch


def test_trackers_that_are_not_in_step_are_refused(ranks):
    assert ranks.run(update_at_other_times) == (1, 1)


def test_alone_everything_is_given_back():
    peers = Peers()
    tensors = [torch.ones(2), torch.zeros(3)]
    assert peers.size == 1
    assert all(a is b for a, b in zip(peers.sum(tensors), tensors, strict=True))
    assert peers.gather(7) == [7]
    sets = {"a": neq.ActiveSet.full(3)}
    assert peers.first(sets) == sets


def test_says_what_is_wrong():
    with pytest.raises(TypeError, match=r"process_group: expected a ProcessGroup, .* got int"):
        Peers(3)


def choose_by_gradient(rank):
    """Without DistributedDataParallel gradients differ; their squares add up."""
    model, _ = make(PARTS[rank])
    schedule = neq.Schedule(model, neq.selectors.GradientNorm(0.5), every=2)
    for part in PARTS[rank]:
        model(part).square().sum().backward()
    schedule.step()
    return {name: active.mask() for name, active in neq.get_active(model).items()}


def test_a_schedule_chooses_alike_on_all_ranks(ranks):
    first, second = ranks.run(choose_by_gradient)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not first["0"].all() or not first["4"].all()
