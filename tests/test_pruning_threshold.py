"""threshold_search against its written steps, and the schedules around it."""

import copy
import io
import math

import pytest
import torch
from torch import nn

import neq_kernels as neq
from neq_kernels.pruning import LOBSTER, Gradual, OneShot, get_masks, share_zeroed, threshold_search

pytestmark = pytest.mark.usefixtures("one_thread")


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def distance(model):
    """A loss that grows as weights go: 1 + squared distance from the weights it was made with."""
    target = [p.detach().clone() for p in model.parameters()]

    def evaluate(model):
        return 1 + sum((p - t).square().sum() for p, t in zip(model.parameters(), target)).item()  # noqa: B905

    return evaluate


def spelled_out(model, loss_at, tolerance):
    """The search as papers.md has it, one step a line."""
    layers = [list(m.parameters()) for m in model if list(m.parameters())]
    nonzero = [torch.cat([p.detach().abs().flatten() for p in own]) for own in layers]
    nonzero = [w[w != 0].double() for w in nonzero]
    before = loss_at(0.0)
    bound = before * (1 + tolerance)
    start = sum(w.mean().item() for w in nonzero) / len(nonzero)
    if loss_at(start) < bound:
        a, b = start, max(w.max().item() for w in nonzero)
        at_a, at_b = loss_at(a), loss_at(b)
    else:
        a, b = min(w.min().item() for w in nonzero), start
        at_a, at_b = before, loss_at(b)
    while abs(at_a - at_b) >= 0.05 * bound:
        c = (a + b) / 2
        if c in (a, b):
            break
        if (at_c := loss_at(c)) <= bound:
            a, at_a = c, at_c
        else:
            b, at_b = c, at_c
    return a


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.5, 3.0, 100.0])
def test_search_takes_the_written_steps(tolerance):
    model = make()
    nn.init.uniform_(model[2].weight, 0.05, 2)
    evaluate, before = distance(model), state(model)
    probe = copy.deepcopy(model)

    def loss_at(threshold):
        probe.load_state_dict(before)
        with torch.no_grad():
            for p in probe.parameters():
                p[p.abs() < threshold] = 0
        return evaluate(probe)

    wanted = spelled_out(probe, loss_at, tolerance)
    calls = []
    result = threshold_search(
        model, lambda m: calls.append(m) or evaluate(m), tolerance, max_evaluations=100
    )
    assert result.threshold == wanted
    assert result.evaluations == len(calls)
    assert result.loss == pytest.approx(evaluate(model))
    assert result.loss <= 1 + tolerance
    for name, p in model.named_parameters():
        assert torch.equal(p == 0, (before[name].abs() < wanted) | (before[name] == 0))
        assert torch.equal(p[p != 0], before[name][p != 0])
    assert result.zeroed == share_zeroed(model)
    probe.load_state_dict(before)
    assert (share_zeroed(model) > share_zeroed(probe)) == (tolerance > 0)


def test_evaluations_are_bounded_and_the_bound_is_met():
    model = make()
    evaluate, calls = distance(model), []
    result = threshold_search(
        model, lambda m: calls.append(1) or evaluate(m), 0.3, max_evaluations=5
    )
    assert len(calls) == result.evaluations == 5
    assert evaluate(model) <= 1.3


@pytest.mark.parametrize("failure", [math.nan, RuntimeError("out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_an_exception_leaves_the_model_as_it_was(failure, at):
    model = neq.convert(make())
    model.train()
    with torch.no_grad():
        model[0].weight[0] = 0
    neq.pruning.keep_zeros(model, exclude="2")
    before, masks, evaluate, calls = state(model), get_masks(model), distance(model), []

    def fails(model):
        calls.append(1)
        if len(calls) < at:
            return evaluate(model)
        if isinstance(failure, BaseException):
            raise failure
        return failure

    kind = type(failure) if isinstance(failure, BaseException) else ValueError
    with pytest.raises(kind):
        threshold_search(model, fails, 0.05)
    assert len(calls) == at
    assert same(model, before)
    assert model.training
    assert get_masks(model).keys() == masks.keys()
    assert neq.get_active(model)["0"].count == 7


def test_evaluate_sees_eval_mode_and_leaves_no_trace():
    model, modes = make(), []

    def evaluate(model):
        modes.append((model.training, torch.is_grad_enabled()))
        model[2].running_mean.add_(1)
        torch.rand(1)
        return 1.0

    before, random = model[2].running_mean.clone(), torch.get_rng_state()
    threshold_search(model, evaluate, 0.05)
    assert set(modes) == {(False, False)}
    assert model.training
    assert torch.equal(model[2].running_mean, before)
    assert torch.equal(torch.get_rng_state(), random)


def test_weights_only_and_exclude():
    model = make()
    before = state(model)
    threshold_search(model, lambda m: 1.0, 0.05, weights_only=True, exclude="0")
    changed = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    assert changed == {"3.weight"}


@pytest.mark.parametrize(("arguments", "message"), [
    ({"tolerance": -0.01}, "tolerance: expected a share >= 0"),
    ({"tolerance": math.nan}, "tolerance: expected a share >= 0"),
    ({"tolerance": 0.1, "max_evaluations": 2}, "max_evaluations: expected 3"),
    ({"tolerance": 0.1, "evaluate": lambda m: math.nan}, "evaluate: expected a loss, got NaN"),
    ({"tolerance": 0.1, "evaluate": lambda m: -1.0}, "evaluate: expected a loss of at least 0"),
])  # fmt: skip
def test_bad_numbers(arguments, message):
    model = make()
    before = state(model)
    with pytest.raises(ValueError, match=message):
        threshold_search(model, **{"evaluate": lambda m: 1.0, **arguments})
    assert same(model, before)


def test_evaluate_must_return_a_number():
    for wrong in ("much", None, torch.ones(3)):
        with pytest.raises(TypeError, match="evaluate: expected"):
            threshold_search(make(), lambda m, w=wrong: w, 0.05)


def test_nothing_left_to_prune():
    model = make()
    nn.init.zeros_(model[0].weight)
    for p in model.parameters():
        nn.init.zeros_(p)
    with pytest.raises(ValueError, match="the net is cut"):
        threshold_search(model, lambda m: 1.0, 0.05)


def run(schedule, model, losses, optimizer=None):
    """Feed losses, one an epoch; before each the model moves on by 1 in its first bias."""
    updates = []
    for loss in losses:
        with torch.no_grad():
            model[0].bias.add_(1)
        updates.append(schedule.update(model, lambda m, v=loss: v, optimizer))
    return updates


def test_plateau_rule():
    model = make()
    start = model[0].bias.detach().clone()
    updates = run(OneShot(0.5, patience=2), model, [1.0, 0.9, 0.905, 0.95, 0.905, 0.92, 0.91])
    # 0.905 is worse than the best and still good: it resets the count and moves no best.
    assert [u.bad for u in updates] == [0, 0, 0, 1, 0, 1, 0]
    assert [u.best for u in updates] == [1.0, *(0.9,) * 5, 0.91]
    assert [u.pruned is not None for u in updates] == [False] * 6 + [True]
    assert updates[-1].pruned.zeroed == pytest.approx(0.5, abs=0.01)
    moved = model[0].bias != 0
    assert torch.equal(model[0].bias[moved], (start + 2)[moved])  # the best state, after epoch 2


def test_one_shot_prunes_once_then_ends_in_its_best_state():
    model = make()
    schedule = OneShot(0.6, patience=1)
    updates = run(schedule, model, [1.0, 2.0, 1.5, 3.0])
    assert [u.pruned is not None for u in updates] == [False, True, False, False]
    assert [u.finished for u in updates] == [False, False, False, True]
    with pytest.raises(RuntimeError, match="not finished"):
        schedule.update(model, lambda m: 1.0)


def test_gradual_prunes_until_nothing_more_goes():
    model = make()
    schedule, zeroed = Gradual(0.2, patience=1, slack=0.0), []
    for _ in range(60):
        schedule.step(model)
        update = schedule.update(model, lambda m: 1 + 2 * share_zeroed(m))
        if update.pruned:
            zeroed.append(update.pruned.zeroed)
        if update.finished:
            break
    assert update.finished
    assert len(zeroed) > 2
    assert zeroed == sorted(zeroed)
    assert zeroed[-1] == zeroed[-2]
    assert share_zeroed(model) == zeroed[-1]


def test_gradual_stops_at_its_amount():
    model = make()
    schedule = Gradual(10.0, amount=0.1, patience=1)
    updates = run(schedule, model, [1.0, 2.0])
    assert updates[-1].finished
    assert updates[-1].pruned.zeroed >= 0.1


def test_the_optimizers_state_is_reloaded_but_not_its_rate():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    optimizer.zero_grad()
    model(torch.randn(4, 4)).sum().backward()
    optimizer.step()
    schedule = OneShot(0.5, patience=1)
    schedule.update(model, lambda m: 1.0, optimizer)
    wanted = optimizer.state[model[0].weight]["momentum_buffer"].clone()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.01
    schedule.update(model, lambda m: 2.0, optimizer)
    assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], wanted)
    assert optimizer.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("make_schedule", [
    lambda: OneShot(0.5, patience=2), lambda: Gradual(0.3, patience=2),
], ids=["OneShot", "Gradual"])  # fmt: skip
@pytest.mark.parametrize("cut", [1, 4, 6])
def test_resumed_schedules_go_on_alike(make_schedule, cut):
    losses = [1.0, 2.0, 2.0, 1.5, 3.0, 1.4, 3.0, 3.0, 3.0]
    model, schedule = make(), make_schedule()
    schedule.update(model, lambda m: 5.0)
    run(schedule, model, losses[:cut])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "schedule": schedule.state_dict(model)}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, again = make(seed=1), make_schedule()
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["schedule"], other)
    for loss in losses[cut:]:
        if schedule.finished:
            assert again.finished
            break
        assert run(schedule, model, [loss]) == run(again, other, [loss])
        assert same(other, state(model))
        assert get_masks(other).keys() == get_masks(model).keys()


@pytest.mark.parametrize("make_schedule", [
    lambda: OneShot(0.6, patience=1, slack=-0.01),
    lambda: Gradual(0.2, patience=1, slack=-0.01),
], ids=["OneShot", "Gradual"])  # fmt: skip
@pytest.mark.parametrize("cut", [2, 5, 8])
def test_a_killed_training_goes_on_as_if_it_had_not_been(make_schedule, cut):
    torch.manual_seed(3)
    images, labels = torch.randn(24, 4), torch.arange(24) % 3

    def loss(model):
        return nn.functional.cross_entropy(model(images[16:]), labels[16:])

    def parts(seed):
        model = neq.convert(make(seed))
        optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
        neq.protect(optimizer, model)
        return model, optimizer, make_schedule()

    def train(model, optimizer, schedule, epochs):
        with LOBSTER(model, 1e-2) as regulariser:
            for _ in range(epochs):
                if schedule.finished:
                    return
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[:16]), labels[:16]).backward()
                optimizer.step()
                regulariser.step()
                schedule.update(model, loss, optimizer)

    whole = parts(0)
    train(*whole, 12)
    assert whole[2].prunings
    model, optimizer, schedule = parts(0)
    train(model, optimizer, schedule, cut)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), schedule.state_dict(model)], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = parts(1)
    resumed[0].load_state_dict(saved[0])
    resumed[1].load_state_dict(saved[1])
    resumed[2].load_state_dict(saved[2], resumed[0])
    train(*resumed, 12 - cut)
    assert same(resumed[0], state(whole[0]))
    masks, wanted = get_masks(resumed[0]), get_masks(whole[0])
    assert masks.keys() == wanted.keys()
    assert all(torch.equal(mask, wanted[name]) for name, mask in masks.items())
    assert resumed[2].epoch == whole[2].epoch


def test_schedules_refuse_what_is_not_theirs():
    model = make()
    for kind, arguments in ((OneShot, (1.0,)), (OneShot, (-0.1,)), (Gradual, (-1.0,))):
        with pytest.raises(ValueError, match="expected a share"):
            kind(*arguments)
    with pytest.raises(ValueError, match="patience"):
        OneShot(0.5, patience=0)
    with pytest.raises(ValueError, match="slack"):
        Gradual(slack=math.nan)
    with pytest.raises(ValueError, match="Gradual"):
        Gradual().load_state_dict(OneShot(0.5).state_dict(model), model)
    with pytest.raises(ValueError, match="NaN"):
        Gradual().update(model, lambda m: math.nan)
