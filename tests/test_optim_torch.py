"""neq.optim beside torch: checkpoints, copies, schedulers, hooks, scalers, and what is refused."""

import copy
import io
import pickle

import pytest
import torch
from optim_net import OPTIMIZERS, give_gradients, ours, real_network, theirs
from protect_net import backward, freeze, make, one_thread, parameters, same  # noqa: F401
from torch import nn

import neq_kernels as neq

VARIANTS = [
    ("SGD", {}),
    ("SGD", {"momentum": 0}),
    ("SGD", {"nesterov": True}),
    ("SGD", {"fused": True}),
    ("SGD", {"foreach": True}),
    ("AdamW", {}),
    ("AdamW", {"amsgrad": True}),
    ("AdamW", {"fused": True, "amsgrad": True}),
    ("AdamW", {"foreach": True}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_checkpoints_go_both_ways(name, options):
    """torch -> neq -> torch, against torch all the way; through a file."""
    twin = real_network()
    plain = theirs(name, twin, **options)
    model, kind = real_network(), theirs
    optimizer = kind(name, model, **options)
    layout = None
    for leg in range(3):
        for seed in range(2):
            for each, its in ((model, optimizer), (twin, plain)):
                give_gradients(each, torch.Generator().manual_seed(10 * leg + seed))
                its.step()
        torch.testing.assert_close(list(model.parameters()), list(twin.parameters()))
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        saved = torch.load(file)
        structure = (
            [set(group) for group in saved["param_groups"]],
            {
                i: {key: (value.shape, value.dtype) for key, value in state.items()}
                for i, state in saved["state"].items()
            },
        )
        assert layout in (None, structure)
        layout = structure
        kind = ours if kind is theirs else theirs
        optimizer = kind(name, model, **options)
        optimizer.load_state_dict(saved)


def test_a_checkpoint_without_a_buffer_yet():
    """Older versions of torch save None for the buffer of a parameter that had no gradient."""
    model = real_network()
    plain = theirs("SGD", model)
    give_gradients(model, torch.Generator().manual_seed(0))
    plain.step()
    saved = plain.state_dict()
    saved["state"][0] = {"momentum_buffer": None}
    optimizer = ours("SGD", model)
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert optimizer.state[model[0].weight]["momentum_buffer"].any()


def test_options_that_need_a_capture_are_dropped_from_checkpoints():
    model = real_network()
    saved = theirs("AdamW", model).state_dict()
    saved["param_groups"][0].update(capturable=True, differentiable=True)
    optimizer = ours("AdamW", model)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["capturable"] is False
    assert optimizer.param_groups[0]["differentiable"] is False


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_follow_the_copied_model(name, how):
    model = real_network()
    optimizer = ours(name, model)
    rows = freeze(model)
    both = (model, optimizer)
    if how == "deepcopy":
        model, optimizer = copy.deepcopy(both)
    else:
        model, optimizer = pickle.loads(pickle.dumps(both))
    assert optimizer.model is model
    model[0].set_active(None)
    model[0].set_active([0, 2, 3, 5])
    before = parameters(model[0])
    backward(model)
    optimizer.step()
    assert all(same(model[0], before, rows))
    assert not any(same(model[0], before, [0, 2]))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_convert_revert_and_groups_after_the_optimizer_was_made(name):
    model = make()
    groups = [{"params": [model[0].weight], "lr": 0.05}]
    optimizer = getattr(neq.optim, name)(groups, model=model)
    optimizer.add_param_group({"params": [model[0].bias, model[4].weight], "weight_decay": 0.5})
    neq.convert(model)
    rows = freeze(model)
    before, head = parameters(model[0]), parameters(model[4])
    backward(model)
    optimizer.step()
    assert all(same(model[0], before, rows))
    assert not any(same(model[0], before, [0]))
    assert all(same(model[4], head))
    neq.revert(model)
    optimizer.zero_grad()
    assert model[0].weight.grad is None
    backward(model)
    optimizer.step()
    assert not any(same(model[0], before, rows))
    assert same(model[4], head) == [False, True], "its bias is not this optimizer's"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_schedulers_hooks_and_closures(name):
    model = real_network()
    optimizer = ours(name, model, lr=0.1)
    assert isinstance(optimizer, getattr(torch.optim, name))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("saved"))

    def closure():
        optimizer.zero_grad()
        return backward(model)

    assert optimizer.step(closure) > 0
    scheduler.step()
    optimizer.state_dict()
    assert calls == ["before", "after", "saved"]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    twin = real_network()
    plain = theirs(name, twin, lr=0.1)
    backward(twin)
    plain.step()
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()))


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_grad_scaler_divides_and_skips(name, fused):
    model, twin = real_network(), real_network()
    optimizer, plain = ours(name, model, fused=fused), theirs(name, twin)
    optimizer.load_state_dict(optimizer.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    backward(model, scale=scaler.scale)
    scaler.step(optimizer)
    scaler.update()
    backward(twin)
    plain.step()
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()))
    before = parameters(model[0])
    optimizer.zero_grad()
    backward(model, scale=lambda loss: scaler.scale(loss * float("inf")))
    scaler.step(optimizer)
    scaler.update()
    assert all(same(model[0], before))
    assert scaler.get_scale() == 512.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_tensor_hyperparameters_on_the_cpu(name):
    model, twin = real_network(), real_network()
    rate = torch.tensor(0.05)
    optimizer, plain = ours(name, model, lr=rate), theirs(name, twin, lr=0.025)
    rate.mul_(0.5)
    for each, its in ((model, optimizer), (twin, plain)):
        backward(each)
        its.step()
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_under_compile_the_step_is_left_to_python(name):
    model = real_network()
    optimizer = ours(name, model)
    rows = freeze(model)
    before = parameters(model[0])

    @torch.compile(backend="eager")
    def step():
        optimizer.step()

    for _ in range(2):
        backward(model)
        step()
    assert all(same(model[0], before, rows))
    assert not any(same(model[0], before, [0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"differentiable": True}, "differentiable: expected False, got True; use torch's own"),
        ({"state": "reference"}, "state: expected 'hold' or 'keep', got 'reference'; to decay"),
        ({"lr": -1.0}, "Invalid learning rate"),
        ({"fused": True, "foreach": True}, "cannot be `True` together"),
    ],
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_it_refuses(name, options, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        ours(name, real_network(), **options)


def test_what_it_refuses_of_the_model_and_of_capture():
    model = real_network()
    with pytest.raises(TypeError, match="model"):
        neq.optim.SGD(model.parameters())
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got list; pass SGD"):
        neq.optim.SGD(model.parameters(), model=[])
    with pytest.raises(ValueError, match="none of the 6 that this AdamW holds belongs to it"):
        neq.optim.AdamW(model.parameters(), model=copy.deepcopy(model))
    with pytest.raises(ValueError, match="capturable: expected False, got True"):
        neq.optim.AdamW(model.parameters(), model=model, capturable=True)


def test_sparse_gradients_and_tensors_on_a_device_are_refused():
    model = nn.Sequential(nn.Embedding(4, 3, sparse=True), nn.Linear(3, 2))
    optimizer = ours("SGD", model)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="grad: expected a dense gradient, got layout"):
        optimizer.step()
    optimizer = ours("SGD", model[1])
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device="meta")
    model[1](torch.ones(3)).sum().backward()
    with pytest.raises(
        ValueError, match="lr: expected a number or a tensor on the CPU, got one on"
    ):
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_protect_is_neither_needed_nor_taken(name):
    model = real_network()
    optimizer = ours(name, model)
    message = f"got neq_kernels.optim.{name}, which leaves them alone by itself; leave protect out"
    with pytest.raises(ValueError, match=message):
        neq.protect(optimizer, model)
    with pytest.raises(ValueError, match="leave protect out"):
        neq.protect(optimizer, model[0])
