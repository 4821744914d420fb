"""convert and revert: the same objects, and what is left out and why."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import weight_norm as old_weight_norm

import neq_kernels as neq
from neq_kernels.convert import converted_layers, skipped
from neq_kernels.layer import NEqLayer
from neq_kernels.modules import NEqConv2d, NEqLinear


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )


X = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))


def test_the_same_objects_before_and_after():
    model, calls = small(), []
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model[0].register_forward_hook(lambda *_: calls.append("hook"))
    assert neq.convert(model) is model
    assert dict(model.named_modules()) == modules
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert {name for name, _ in model.named_buffers()} == {
        name for name in state if "running" in name or "num_batches" in name
    }
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    model(X)
    assert calls == ["hook"]
    assert isinstance(model[0], nn.Conv2d)
    assert list(converted_layers(model)) == ["0", "1", "4"]


def test_revert_gives_everything_back():
    plain = small()
    calls = []
    plain.register_forward_hook(lambda *_: calls.append("own"))
    kept = {name: set(m.__dict__) for name, m in plain.named_modules()}
    classes = {name: type(m) for name, m in plain.named_modules()}
    model = neq.convert(plain)
    neq.set_active(model, {"0": [1], "4": []})
    model(X).sum().backward()
    assert neq.revert(model) is model
    assert {name: type(m) for name, m in model.named_modules()} == classes
    assert {name: set(m.__dict__) for name, m in model.named_modules()} == kept
    assert len(model._forward_hooks) == 1
    assert not model._forward_pre_hooks
    assert not model._forward_hooks_always_called
    model.zero_grad()
    model(X).sum().backward()
    assert model[0].weight.grad.flatten(1).any(1).all()
    assert calls == ["own", "own"]
    assert neq.revert(model) is model
    assert list(converted_layers(neq.convert(model))) == ["0", "1", "4"]


def test_converting_again_takes_in_what_was_added():
    model = neq.convert(small(), propagate="active")
    neq.set_active(model, {"0": [1]})
    model.append(nn.Linear(3, 2))
    hooks = len(model._forward_hooks)
    neq.convert(model)
    assert len(model._forward_hooks) == hooks
    assert type(model[5]) is NEqLinear
    assert model[0].active.count == 1
    assert [layer.propagate for layer in converted_layers(model).values()] == ["active"] * 3 + [
        "all"
    ]
    neq.convert(model, propagate="all")
    assert {layer.propagate for layer in converted_layers(model).values()} == {"all"}


def test_exclude_patterns():
    model = neq.convert(small(), exclude=["4", "[01]"])
    assert not converted_layers(model)
    assert skipped(model)["4"] == "excluded by '4'"
    neq.convert(model, exclude="4")
    assert list(converted_layers(model)) == ["0", "1"]
    assert list(skipped(model)) == ["4"]


def test_excluding_a_block_excludes_what_is_in_it():
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 2)), "head": nn.Linear(2, 2)})
    neq.convert(model, exclude="body")
    assert list(converted_layers(model)) == ["head"]


def test_a_root_that_is_itself_a_layer():
    layer = nn.Linear(3, 2)
    assert neq.convert(layer) is layer
    assert type(layer) is NEqLinear
    layer.set_active([1])
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.weight.grad.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert neq.report(layer).coverage == 1
    assert type(neq.revert(layer)) is nn.Linear
    assert not layer._forward_hooks


class OwnLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def patched_linear():
    layer = nn.Linear(2, 2)
    layer.forward = lambda x: x
    return layer


def half_frozen_tie():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    return nn.Sequential(first, second)


class OwnParameter(nn.Parameter):
    pass


def own_parameter():
    layer = nn.Linear(2, 2)
    layer.weight = OwnParameter(torch.zeros(2, 2))
    return layer


SKIPPED = {
    "subclass": (lambda: OwnLinear(2, 2), "OwnLinear is a subclass of Linear"),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Linear(2, 2)), "parametrized"),
    "weight_norm by hooks": (lambda: old_weight_norm(nn.Linear(2, 2)), "weight"),
    "spectral_norm": (lambda: nn.utils.spectral_norm(nn.Linear(2, 2)), "weight"),
    "lazy": (lambda: nn.LazyLinear(2), "lazy: run one forward"),
    "patched": (patched_linear, "forward was replaced"),
    "embedding": (lambda: nn.Embedding(3, 2), "Embedding is not a layer"),
    "transposed": (lambda: nn.ConvTranspose2d(2, 2, 1), "ConvTranspose2d is not a layer"),
    "no weight": (lambda: nn.LayerNorm(2, elementwise_affine=False), None),
    "two axes": (lambda: nn.LayerNorm((2, 3)), "no single channel axis"),
    "complex": (lambda: nn.Linear(2, 2, dtype=torch.complex64), "complex64"),
    "own parameter": (own_parameter, "OwnParameter"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(("make", "reason"), SKIPPED.values(), ids=SKIPPED)
def test_skipped_with_a_reason(make, reason):
    module = make()
    before = type(module), set(module.__dict__)
    model = neq.convert(nn.Sequential(module, nn.Linear(2, 2)))
    assert list(converted_layers(model)) == ["1"]
    assert type(module) is before[0]
    if reason is None:
        assert "0" not in skipped(model)
    else:
        assert reason in skipped(model)["0"]
        assert f"skipped 0: {skipped(model)['0']}" in str(neq.report(model))
    neq.revert(model)
    assert set(module.__dict__) == before[1]


def test_tied_parameters_are_skipped_on_both_sides():
    model = nn.ModuleDict({"embedding": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
    model["head"].weight = model["embedding"].weight
    model["other"] = nn.Linear(3, 4)
    neq.convert(model)
    assert list(converted_layers(model)) == ["other"]
    assert skipped(model)["head"] == "a parameter is tied to 'embedding'"
    two = neq.convert(half_frozen_tie())
    assert not converted_layers(two)
    assert skipped(two) == {
        "0": "a parameter is tied to '1'",
        "1": "a parameter is tied to '0'",
    }


def test_a_layer_used_twice_is_converted_once():
    layer = nn.Linear(3, 3)
    model = neq.convert(nn.Sequential(layer, nn.ReLU(), layer))
    model[0].set_active([1])
    x = torch.ones(2, 3)
    model(x).sum().backward()
    assert not layer.weight.grad[[0, 2]].any()
    twin = nn.Linear(3, 3)
    twin.load_state_dict(layer.state_dict())
    twin(twin(x).relu()).sum().backward()
    torch.testing.assert_close(layer.weight.grad[1], twin.weight.grad[1])


def test_a_lazy_layer_once_it_has_run():
    model = neq.convert(nn.Sequential(nn.LazyLinear(2)))
    assert not converted_layers(model)
    model(torch.ones(1, 3))
    assert list(converted_layers(neq.convert(model))) == ["0"]
    assert not skipped(model)


@pytest.mark.parametrize("sets", [[1], [], None], ids=["some", "none", "all"])
@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("with_dx", [False, True], ids=["leaf input", "dX"])
@pytest.mark.parametrize("propagate", ["all", "active"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(3, 4), (2, 3)),
        (lambda: nn.Conv2d(3, 4, 1), (2, 3, 2, 2)),
        (lambda: nn.Conv2d(4, 4, 3, groups=2), (2, 4, 3, 3)),
        (lambda: nn.BatchNorm2d(4), (2, 4, 2, 2)),
        (lambda: nn.LayerNorm(4), (2, 4)),
    ],
    ids=["Linear", "Conv2d", "grouped Conv2d", "BatchNorm2d", "LayerNorm"],
)
def test_frozen_by_requires_grad_stays_so(make, shape, propagate, with_dx, frozen, sets):
    torch.manual_seed(0)
    layer = make()
    plain = copy.deepcopy(layer)
    neq.convert(nn.Sequential(layer), propagate=propagate)
    layer.set_active(sets)
    getattr(layer, frozen).requires_grad_(False)
    x = torch.randn(shape, requires_grad=with_dx)
    y = layer(x)
    assert getattr(layer, frozen).grad is None
    if not y.requires_grad:
        assert sets == []
        return
    y.square().sum().backward()
    plain(x.detach()).square().sum().backward()
    other = "bias" if frozen == "weight" else "weight"
    assert getattr(layer, frozen).grad is None
    if sets == []:
        assert getattr(layer, other).grad is None
        return
    wanted = getattr(plain, other).grad
    wanted.index_fill_(0, layer.active.frozen, 0)
    torch.testing.assert_close(getattr(layer, other).grad, wanted)


def test_a_part_and_then_the_whole():
    model = small()
    part = nn.Sequential(model[0], model[1])
    whole = nn.Sequential(part, *model[2:])
    neq.convert(part)
    neq.set_active(part, {"0": [1]})
    neq.convert(whole)
    assert whole[0][0].active.count == 1
    whole(X).sum().backward()
    assert neq.report(part).coverage is not None
    assert neq.report(whole).coverage == 1
    neq.revert(part)
    assert list(converted_layers(whole)) == ["3"]
    whole(X).sum().backward()
    neq.set_active(whole, {"3": [0]})
    whole(X).sum().backward()
    with pytest.warns(UserWarning, match="only 25%"):
        assert [row.name for row in neq.report(whole).layers] == ["3"]
    neq.revert(whole)
    assert not any(isinstance(m, NEqLayer) for m in whole.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in whole.modules())


@pytest.mark.parametrize("ran", [False, True], ids=["before the first forward", "after it"])
def test_a_copy_is_independent(ran):
    model = neq.convert(small())
    neq.set_active(model, {"0": [1]})
    if ran:
        model(X)
    twin = copy.deepcopy(model)
    assert twin[0].active == model[0].active
    neq.set_active(twin, {"0": [0, 2], "4": [1]})
    assert model[0].active.index.tolist() == [1]
    twin(X).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert twin[0].weight.grad.flatten(1).any(1).tolist() == [True, False, True, False]
    model(X).sum().backward()
    assert model[0].weight.grad.flatten(1).any(1).tolist() == [False, True, False, False]
    assert neq.report(twin).coverage == 1
    neq.revert(twin)
    assert type(model[0]) is NEqConv2d
    assert not twin._forward_hooks


def test_converting_a_copy_of_a_plain_model():
    plain = small()
    model = neq.convert(copy.deepcopy(plain))
    assert type(plain[0]) is nn.Conv2d
    torch.testing.assert_close(model(X), plain(X))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.inner(x, x, x, need_weights=False)[0])


class BehindTheBack(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.called = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return F.linear(self.called(x), self.used.weight) + x @ self.used.weight.t()


@pytest.mark.parametrize(
    ("make", "shape", "hidden"),
    [(Attention, (2, 3, 4), "inner.out_proj"), (BehindTheBack, (2, 3), "used")],
    ids=["MultiheadAttention", "F.linear"],
)
def test_weights_used_behind_their_layers_back(make, shape, hidden):
    model = neq.convert(make())
    plain = copy.deepcopy(model)
    neq.revert(plain)
    x = torch.randn(shape)
    model(x).sum().backward()
    plain(x).sum().backward()
    assert hidden not in converted_layers(model)
    assert hidden in skipped(model)
    for (name, mine), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=name)


def test_a_set_that_a_hidden_weight_cannot_follow_is_warned_about():
    model = neq.convert(BehindTheBack())
    neq.set_active(model, {"used": [0]})
    with pytest.warns(UserWarning, match=r"used: its weight is used without calling the layer"):
        model(torch.randn(2, 3))
    assert list(converted_layers(model)) == ["called"]


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_transformer_encoder_layer(train):
    """In eval its fast path hands all weights to one fused function, under no_grad."""
    torch.manual_seed(0)
    plain = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = neq.convert(copy.deepcopy(plain))
    x = torch.randn(2, 3, 8)
    model.train(train), plain.train(train)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))
    model.train(), plain.train()
    names = list(converted_layers(model))
    assert "linear1" in names
    assert "linear2" in names
    neq.set_active(model, {"linear1": [3, 5], "norm1": [0]})
    torch.testing.assert_close(model(x), plain(x))
    model(x).square().sum().backward()
    plain(x).square().sum().backward()
    torch.testing.assert_close(model.linear1.weight.grad[[3, 5]], plain.linear1.weight.grad[[3, 5]])
    assert model.linear1.weight.grad.any(1).sum() == 2
