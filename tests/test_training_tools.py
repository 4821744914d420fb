"""What people train with: accumulation, AMP, checkpointing, second derivatives, copies, hooks."""

import copy
import io
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from cases import CONV, LINEAR, NORM, by_name, conv1d_columns, randn, size_of, zeroed
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import neq_kernels as neq
from neq_kernels.convert import converted_layers

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = {
    "linear": by_name(LINEAR, "tokens"),
    "columns": conv1d_columns(by_name(LINEAR, "tokens")),
    "conv": by_name(CONV, "plain"),
    "groups": by_name(CONV, "groups"),
    "batch-norm": by_name(NORM, "2d"),
    "layer-norm": by_name(NORM, "layer"),
}
each_kind = pytest.mark.parametrize("case", KINDS.values(), ids=KINDS)
each_propagate = pytest.mark.parametrize("propagate", ["all", "active"])
products = pytest.mark.parametrize(
    "case", [KINDS[k] for k in ("linear", "columns", "conv", "groups")]
)


def converted(case, index=(1, 4), propagate="all", dtype=torch.float32):
    layer = neq.convert(case.layer(dtype), propagate=propagate)
    layer.set_active(list(index))
    return layer


def net(propagate="all", index=(1, 4)):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2),
        nn.Flatten(), nn.Linear(24, 7), nn.LayerNorm(7), nn.Linear(7, 5),
    )  # fmt: skip
    model = neq.convert(model, propagate=propagate)
    neq.set_active(model, {name: list(index) for name in neq.get_active(model)})
    return model


def images(seed=0):
    return randn((4, 3, 6, 6), torch.float32, seed)


def grads(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def assert_frozen_rows_zero(layer):
    for name, parameter, dim in layer.neuron_parameters():
        rows = parameter.grad.index_select(dim, layer.active.frozen)
        assert (rows == 0).all(), name


@each_kind
def test_two_backwards_accumulate(case):
    layer = converted(case)
    layer(case.x()).square().sum().backward()
    once = grads(layer)
    layer(case.x()).square().sum().backward()
    for name, gradient in grads(layer).items():
        torch.testing.assert_close(gradient, 2 * once[name])
    assert_frozen_rows_zero(layer)


def test_accumulation_over_a_change_of_the_set():
    layer = neq.convert(nn.Linear(3, 4))
    x = torch.ones(2, 3)
    for index in ([0, 1], [1, 2], [], None):
        layer.set_active(index)
        y = layer(x)
        if y.requires_grad:
            y.sum().backward()
    assert layer.bias.grad.tolist() == [4, 6, 4, 2]


@each_kind
@each_propagate
def test_retain_graph_and_backward_twice(case, propagate):
    layer, x = converted(case, propagate=propagate), case.x()
    loss = layer(x).square().sum()
    loss.backward(retain_graph=True)
    once = {**grads(layer), "x": x.grad.clone()}
    loss.backward()
    for name, gradient in {**grads(layer), "x": x.grad}.items():
        torch.testing.assert_close(gradient, 2 * once[name])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@each_kind
@pytest.mark.parametrize("inside", [True, False], ids=["backward-inside", "backward-outside"])
def test_autocast(case, inside):
    layer, plain = converted(case), case.layer()
    x, dy = case.x(), None
    found = []
    for model in (layer, plain):
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
            dy = randn(y.shape, y.dtype, 3)
            if inside:
                y.backward(dy)
        if not inside:
            y.backward(dy)
        found.append((y, x.grad, grads(model)))
    (y, dx, ours), (torchs_y, torchs_dx, torchs) = found
    assert y.dtype == torchs_y.dtype
    assert torch.equal(y, torchs_y)
    torch.testing.assert_close(dx, torchs_dx, rtol=0.02, atol=0.02)
    assert_frozen_rows_zero(layer)
    for name, parameter, dim in layer.neuron_parameters():
        assert ours[name].dtype == torch.float32
        expected = zeroed(torchs[name], dim, layer.active.frozen.tolist())
        torch.testing.assert_close(ours[name], expected, rtol=0.02, atol=0.05)
        assert parameter.dtype == torch.float32


def test_grad_scaler_scales_and_skips():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loss = model(images()).square().mean()
    loss.backward()
    plain = grads(model)
    optimizer.zero_grad()
    scaler.scale(model(images()).square().mean()).backward()
    scaler.unscale_(optimizer)
    for name, gradient in grads(model).items():
        torch.testing.assert_close(gradient, plain[name])
    before = copy.deepcopy(model.state_dict())
    model[5].weight.grad[1, 0] = float("inf")
    optimizer.zero_grad()
    scaler.update()
    scaler.scale(model(images()).mean() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("index", [(1, 4), ()], ids=["some", "none"])
@each_propagate
def test_checkpoint(use_reentrant, index, propagate):
    found = []
    for wrapped in (False, True):
        model = net(propagate if index else "all", index)
        model[7].set_active([0])
        x = images().requires_grad_()
        hidden = checkpoint(model[:7], x, use_reentrant=use_reentrant) if wrapped else model[:7](x)
        model[7](hidden).square().sum().backward()
        found.append({**grads(model), "x": x.grad})
    assert_same(*found)


@each_kind
def test_backward_after_a_change_of_the_set_raises(case):
    layer = converted(case)
    y = layer(case.x())
    layer.set_active([0])
    with pytest.raises(RuntimeError, match="active set that the forward saw, but it was changed"):
        y.sum().backward()
    assert all(p.grad is None for p in layer.parameters())
    layer(case.x()).sum().backward()


@products
def test_backward_after_a_change_from_none_raises(case):
    layer = converted(case, ())
    y = layer(case.x())
    layer.set_active([0])
    with pytest.raises(RuntimeError, match="changed in between"):
        y.sum().backward()


@each_kind
def test_a_change_after_an_all_active_forward_keeps_all_rows(case):
    layer, plain = neq.convert(case.layer()), case.layer()
    y = layer(case.x())
    layer.set_active([0])
    y.square().sum().backward()
    plain(case.x()).square().sum().backward()
    assert_same(grads(layer), grads(plain))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@each_kind
def test_a_change_in_no_grad_and_inference_mode_is_seen(case, mode):
    layer = converted(case)
    y = layer(case.x())
    with mode():
        layer.set_active([0])
    with pytest.raises(RuntimeError, match="changed in between"):
        y.sum().backward()
    layer(case.x()).sum().backward()
    assert_frozen_rows_zero(layer)


@each_kind
def test_converting_in_inference_mode(case):
    plain = case.layer()
    with torch.inference_mode():
        layer = neq.convert(plain)
    layer.set_active([0])
    layer(case.x()).sum().backward()
    assert_frozen_rows_zero(layer)


def test_a_change_before_a_checkpointed_backward_raises():
    model, x = net(), images().requires_grad_()
    loss = checkpoint(model[:7], x, use_reentrant=False).square().sum()
    neq.set_active(model, {name: [0] for name in neq.get_active(model)})
    with pytest.raises(RuntimeError, match="changed in between"):
        loss.backward()


@each_kind
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_forward_without_gradients(case, mode):
    layer, plain = converted(case), case.layer()
    with mode():
        y = layer(case.x())
        assert torch.equal(y, plain(case.x()))
    assert not y.requires_grad
    assert y.is_inference() == (mode is torch.inference_mode)


@each_kind
def test_all_active_is_torchs_own_graph(case):
    layer, plain = neq.convert(case.layer()), case.layer()

    def nodes(y):
        names, waiting = [], [y.grad_fn]
        while waiting:
            node = waiting.pop()
            names.append(type(node).__name__)
            waiting += [child for child, _ in node.next_functions if child is not None]
        return names

    x = case.x()
    assert nodes(layer(x)) == nodes(plain(x))
    layer.set_active([0])
    assert nodes(layer(x)) != nodes(plain(x))


@products
def test_none_active_saves_no_input_and_gives_no_gradient(case):
    layer = converted(case, ())
    x = case.x()
    hidden = x * 2
    dies = weakref.ref(hidden)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        y = layer(hidden)
    assert all(t is not hidden and t.data_ptr() != hidden.data_ptr() for t in saved if t.numel())
    saved.clear()
    y = layer(hidden)
    del hidden
    assert dies() is None
    y.sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in layer.parameters())


@products
def test_none_active_above_no_gradient_leaves_the_graph(case):
    layer = converted(case, ())
    assert not layer(case.x().detach()).requires_grad


@products
def test_a_frozen_weight_with_a_learning_bias_saves_no_input(case):
    layer = converted(case)
    layer.weight.requires_grad_(False)
    hidden = case.x() * 2
    dies = weakref.ref(hidden)
    y = layer(hidden)
    del hidden
    assert dies() is None
    y.sum().backward()
    assert layer.bias.grad is not None


class _Masked:
    """The definition: frozen rows are constants; with "active", so are the frozen outputs."""

    def __init__(self, case, index, propagate):
        self.layer = case.layer(torch.float64)
        self.active = neq.ActiveSet.from_index(list(index), size_of(self.layer))
        self.propagate, self.case = propagate, case

    def __call__(self, x):
        mask = self.active.mask()
        parameters = {}
        for name, p in self.layer.named_parameters():
            columns = name == "weight" and self.case is KINDS["columns"]
            shape = [1] * p.dim()
            shape[int(columns)] = -1
            parameters[name] = torch.where(mask.view(shape), p, p.detach())
        y = torch.func.functional_call(self.layer, parameters, x)
        if self.propagate == "active" and self.layer.weight.dim() > 1:
            shape = [1] * y.dim()
            shape[1 if isinstance(self.layer, nn.Conv2d) else -1] = -1
            y = torch.where(mask.view(shape), y, y.detach())
        return y


@each_kind
@each_propagate
@pytest.mark.parametrize("index", [(1, 4), ()], ids=["some", "none"])
def test_gradient_penalty(case, propagate, index):
    if propagate == "active" and not index and case.layer().weight.dim() > 1:
        return  # Nothing passes: there is no first derivative.
    layer = converted(case, index, propagate, torch.float64)
    truth = _Masked(case, index, propagate)
    found = []
    for model, own in ((layer, layer), (truth, truth.layer)):
        x = case.x(torch.float64)
        y = model(x)
        (dx,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        (y.square().sum() + dx.square().sum()).backward()
        found.append({"x": x.grad, **{n: p.grad for n, p in own.named_parameters()}})
    ours, expected = found
    for name, gradient in expected.items():
        if ours[name] is None:
            assert gradient is None or not gradient.any(), name
        else:
            torch.testing.assert_close(ours[name], gradient, msg=lambda m, n=name: f"{n}: {m}")


@each_kind
@each_propagate
def test_second_derivatives_of_the_weight_gradient(case, propagate):
    layer = converted(case, (1, 4), propagate, torch.float64)
    truth = _Masked(case, (1, 4), propagate)
    found = []
    for model, own in ((layer, layer), (truth, truth.layer)):
        x = case.x(torch.float64)
        parameters = list(own.parameters())
        first = torch.autograd.grad(model(x).sin().sum(), parameters, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), [x, *parameters]))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


@each_kind
def test_gradgradcheck(case):
    layer = converted(case, dtype=torch.float64)
    if isinstance(layer, nn.BatchNorm2d):
        layer.eval()
    x = case.x(torch.float64).detach()[:2, :2].clone() if case is KINDS["linear"] else None
    x = case.x(torch.float64) if x is None else x.requires_grad_()
    assert torch.autograd.gradgradcheck(layer, (x,), fast_mode=True)


def test_functional_call_and_func_grad():
    model = net()
    plain = neq.revert(copy.deepcopy(model))
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(of):
        return lambda p: torch.func.functional_call(of, p, images()).square().sum()

    model.eval()
    plain.eval()
    ours, dense = torch.func.grad(loss(model))(parameters), torch.func.grad(loss(plain))(parameters)
    for name, layer in converted_layers(model).items():
        for key in ("weight", "bias"):
            expected = zeroed(dense[f"{name}.{key}"], 0, layer.active.frozen.tolist())
            torch.testing.assert_close(ours[f"{name}.{key}"], expected)
    swapped = {name: (2 * p).requires_grad_() for name, p in parameters.items()}
    torch.func.functional_call(model, swapped, images()).square().sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert (swapped["5.weight"].grad[model[5].active.frozen] == 0).all()
    assert (swapped["5.weight"].grad[1] != 0).any()


@each_kind
def test_per_sample_gradients_by_vmap(case):
    if case is KINDS["batch-norm"]:
        return  # torch's own refuses: running statistics are changed in place.
    layer = converted(case)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(p, x):
        return torch.func.functional_call(layer, p, x.unsqueeze(0)).sin().sum()

    x = case.x().detach()
    mapped = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i, sample in enumerate(x):
        layer.zero_grad()
        loss(dict(layer.named_parameters()), sample).backward()
        for name, p in layer.named_parameters():
            torch.testing.assert_close(mapped[name][i], p.grad)


# torch scripts its own decompositions when forward mode is first used.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@each_kind
def test_forward_mode(case):
    layer, plain = converted(case), case.layer()
    layer.eval()
    plain.eval()
    x, tangent = case.x().detach(), randn(case.input, torch.float32, 7)
    ours, expected = (torch.func.jvp(m, (x,), (tangent,)) for m in (layer, plain))
    torch.testing.assert_close(ours, expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        y = torch.autograd.forward_ad.unpack_dual(layer(dual))
        torch.testing.assert_close(y.tangent, expected[1])


@each_kind
@pytest.mark.parametrize("index", [(1, 4), (), range(9)], ids=["some", "none", "more"])
def test_copies_keep_the_set_and_are_independent(case, index):
    layer = converted(case, index, "active")
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(buffer, weights_only=False),
    ]
    for other in copies:
        assert type(other) is type(layer)
        assert other.active == layer.active
        assert other.propagate == "active"
        other.set_active([2])
        other(case.x()).sum().backward()
        assert_frozen_rows_zero(other)
    assert layer.active.index.tolist() == list(index)


def test_state_dict_is_torchs(tmp_path):
    model = net()
    plain = neq.revert(copy.deepcopy(model))
    assert list(model.state_dict()) == list(plain.state_dict())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    plain.load_state_dict(state, strict=True)
    with torch.no_grad():
        plain[0].weight.add_(1)
    model.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(model[0].weight, plain[0].weight)
    assert model[0].active.index.tolist() == [1, 4]


@each_kind
def test_loading_by_assignment_into_a_model_on_meta(case):
    state = case.layer().state_dict()
    with torch.device("meta"):
        layer = neq.convert(case.make())
    layer.set_active([1, 4])
    layer.load_state_dict(state, assign=True)
    layer(case.x()).sum().backward()
    assert_frozen_rows_zero(layer)


@each_kind
def test_to_meta_and_back(case):
    layer = converted(case)
    layer.to("meta")
    layer.to_empty(device="cpu")
    layer.load_state_dict(case.layer().state_dict())
    assert layer.active.index.tolist() == [1, 4]
    expected = converted(case)
    for model in (layer, expected):
        model(case.x()).square().sum().backward()
    assert_same(grads(layer), grads(expected))


@each_kind
@pytest.mark.parametrize("change", ["half", "double", "bfloat16"])
def test_change_of_dtype(case, change):
    layer = converted(case)
    getattr(layer, change)()
    x = case.x(layer.weight.dtype)
    layer(x).sum().backward()
    assert layer.weight.grad.dtype == x.grad.dtype == layer.weight.dtype
    assert layer.active.index.tolist() == [1, 4]
    assert_frozen_rows_zero(layer)


@pytest.mark.parametrize("ema", [False, True])
def test_averaged_model(ema):
    model = net()
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.5) if ema else None
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(2):
        model(images(step)).square().sum().backward()
        optimizer.step()
        averaged.update_parameters(model)
        neq.set_active(model, {"5": [step]})
    assert averaged.module[5].active.index.tolist() == [1, 4]
    averaged(images()).sum().backward()
    assert not any("_index" in name or "_mask" in name for name in averaged.state_dict())


@each_kind
def test_hooks_fire(case):
    layer, seen = converted(case), []
    layer.register_forward_pre_hook(lambda *_: seen.append("pre"))
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.register_full_backward_pre_hook(lambda *_: seen.append("backward pre"))
    layer.register_full_backward_hook(lambda m, dx, dy: seen.append(("backward", dx[0].shape)))
    layer.weight.register_hook(lambda g: seen.append("weight"))
    layer.weight.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    x = case.x()
    layer(x).sum().backward()
    backward = ("backward", x.shape)
    assert seen[:3] == ["pre", "forward", "backward pre"]
    assert sorted(map(str, seen[3:])) == sorted(map(str, ["weight", "accumulated", backward]))


@each_kind
@each_propagate
def test_a_layer_used_twice_in_one_forward(case, propagate):
    layer = converted(case, propagate=propagate)
    xs = case.x(), randn(case.input, torch.float32, 9)
    sum(layer(x).square().sum() for x in xs).backward()
    both = grads(layer)
    layer.zero_grad()
    for x in xs:
        layer(x).square().sum().backward()
    for name, gradient in grads(layer).items():
        torch.testing.assert_close(both[name], gradient)
    assert_frozen_rows_zero(layer)


def test_parameters_that_are_views_of_one_flat_tensor():
    layer, plain = neq.convert(nn.Linear(3, 4)), nn.Linear(3, 4)
    flat = torch.randn(16)
    for model in (layer, plain):
        model.weight.data, model.bias.data = flat[:12].view(4, 3), flat[12:]
    layer.set_active([2])
    x = torch.randn(5, 3)
    for model in (layer, plain):
        model(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad[2], plain.weight.grad[2])
    assert_frozen_rows_zero(layer)


@products
def test_autograd_takes_the_weight_gradient_without_a_copy(case, path):
    layer = converted(case)
    made = []
    layer.weight.register_hook(lambda gradient: made.append(gradient.data_ptr()))
    layer(case.x()).sum().backward()
    assert made == [layer.weight.grad.data_ptr()]


class _Allocated(TorchDispatchMode):
    """Bytes of every tensor that an operation makes rather than passes on."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        for t in result if isinstance(result, tuple | list) else [result]:
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in known:
                self.made.append((str(func), t.untyped_storage().nbytes()))
        return result


@each_propagate
@pytest.mark.parametrize(
    ("make", "shape", "layout"),
    [
        (lambda: nn.Linear(16, 64), (4, 128, 16), "contiguous"),
        (lambda: nn.Linear(16, 64), (4, 128, 16), "transposed"),
        (lambda: nn.Conv2d(8, 64, 3), (4, 8, 18, 18), "contiguous"),
        (lambda: nn.Conv2d(8, 64, 3), (4, 8, 18, 18), "channels_last"),
    ],
)
def test_backward_makes_no_copy_as_large_as_dy(make, shape, layout, propagate, backend):
    layer = neq.convert(make(), propagate=propagate)
    layer.set_active([1, 7, 40])
    x = randn(shape, torch.float32, 1)
    if layout == "channels_last":
        layer.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    y = layer(x)
    dy = torch.ones_like(y)
    if layout == "transposed":
        dy = dy.transpose(0, 1).contiguous().transpose(0, 1)
    with _Allocated() as allocated:
        y.backward(dy)
    whole = y.numel() * y.element_size()
    assert [entry for entry in allocated.made if entry[1] >= whole / 2] == []
    assert layer.weight.grad is not None


def test_training_to_the_end_is_bit_identical_to_masked_dense_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
    plain = copy.deepcopy(model)
    neq.convert(model)
    optimizers = [torch.optim.Adam(m.parameters(), 0.01) for m in (model, plain)]
    for step in range(20):
        index = [c for c in range(9) if (c + step) % 3]
        neq.set_active(model, {"0": index})
        x = randn((8, 6), torch.float32, step)
        for m, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            F.mse_loss(m(x), x[:, :3]).backward()
            if m is plain:
                for p in m[0].parameters():
                    p.grad[[c for c in range(9) if c not in index]] = 0
            optimizer.step()
    for ours, dense in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-6)
