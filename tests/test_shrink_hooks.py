"""What hooks of shrunk layers add: constants behind zero padding, and the outputs of sums."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import neq_kernels as neq
from neq_kernels.pruning import psp_entropy, shrink
from neq_kernels.pruning.shrink.hooks import CONSTANT_INPUTS, CONSTANT_OUTPUTS, LIVE_OUTPUTS
from tests.shrink_nets import IMAGE, difference, make, outputs, prune, zero

pytestmark = pytest.mark.usefixtures("one_thread")
BUFFERS = {CONSTANT_INPUTS, CONSTANT_OUTPUTS, LIVE_OUTPUTS}


def image(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def padded(rank=2, **how):
    """Neurons that are constant, in front of a convolution with padding."""
    torch.manual_seed(0)
    conv = getattr(nn, f"Conv{rank}d")
    model = nn.Sequential(conv(3, 8, 1), nn.Sigmoid(), conv(8, 4, **how)).eval()
    zero(model[0], [0, 3, 4])
    return model


class Residual(nn.Module):
    """A stem behind a pooling, and a branch, into one sum."""

    def __init__(self, norm=True):
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 8, 3), nn.MaxPool2d(2)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.pool(F.relu(self.stem(x)))
        return self.head(F.relu(x + self.norm(self.b(F.relu(self.a(x))))))


def residual(norm=True):
    torch.manual_seed(0)
    model = Residual(norm).eval()
    for layer in (model.a, model.b, model.stem):
        nn.init.uniform_(layer.bias, 0.5, 1)
    if norm:
        nn.init.uniform_(model.norm.bias, 0.5, 1)
    zero(model.stem, [0, 1, 2])
    zero(model.a, [3, 4])
    zero(model.b, [1, 2, 5, 6, 7])
    return model


@pytest.mark.parametrize(
    ("sides", "how"),
    [
        ([(1,), (2,), (8,)], {"kernel_size": 3, "padding": 1}),
        ([(1, 2), (3, 4), (9, 8)], {"kernel_size": 3, "padding": 1, "stride": 2}),
        ([(5, 1), (8, 9)], {"kernel_size": (5, 2), "padding": (2, 1), "dilation": (2, 1)}),
        ([(1, 1), (5, 4)], {"kernel_size": 3, "padding": "same", "bias": False}),
        ([(1, 1), (5, 4)], {"kernel_size": 1, "padding": 3}),
        ([(1, 3, 2), (4, 5, 6)], {"kernel_size": 3, "padding": (1, 0, 2)}),
    ],
)
def test_constants_behind_padding(sides, how):
    model = padded(len(sides[0]), **how).double()
    inputs = [image(2, 3, *shape).double() for shape in sides]
    inputs.append(inputs[-1][0])  # a sample without a batch
    wanted = [outputs(model, x) for x in inputs]
    report = shrink(model, inputs[1])
    assert list(report.hooks.values()) == [["2"]]
    assert model[0].out_channels == 5
    assert getattr(model[2], CONSTANT_INPUTS).shape == (4, 1, *model[2].weight.shape[2:])
    for x, y in zip(inputs, wanted, strict=True):
        assert difference(outputs(model, x), y) < 1e-12
        assert outputs(model, x).shape == y.shape


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    "how",
    [
        {"kernel_size": 2, "padding": "same"},  # pads unevenly, before the convolution
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": 1, "groups": 4},
        {"kernel_size": 3},
    ],
)
def test_no_hook_where_it_would_be_wrong_or_idle(how):
    model = padded(**how).double()
    inputs = [image(2, 3, side, side + 1).double() for side in (4, 8)]
    wanted = [outputs(model, x) for x in inputs]
    assert not shrink(model, inputs[0]).hooks
    for x, y in zip(inputs, wanted, strict=True):
        assert difference(outputs(model, x), y) < 1e-12


@pytest.mark.parametrize("norm", [True, False])
def test_branches_compute_their_live_channels_alone(norm, hooks_pay):
    model, x = residual(norm).double(), image(2, 3, 12, 12).double()
    wanted = outputs(model, x)
    report = shrink(model, x)
    assert difference(outputs(model, x), wanted) < 1e-12
    assert (model.stem.out_channels, model.a.out_channels, model.b.out_channels) == (5, 6, 3)
    assert model.head.in_channels == 6  # 1 and 2 are constant in both
    assert model.a.in_channels == 6
    names = {n for names in report.hooks.values() for n in names}
    assert names == {"pool", "a", "b", "norm" if norm else "b"}
    assert getattr(model.norm if norm else model.b, LIVE_OUTPUTS).tolist() == [0, 1, 2]
    assert "sets its outputs between constants" in str(report)


def test_only_where_it_pays():
    """Eight channels are computed sooner than they are set into their places."""
    model, x = residual(), image(2, 3, 12, 12)
    report = shrink(model, x)
    assert [names for what, names in report.hooks.items() if "for a sum" in what] == []
    assert model.stem.out_channels == model.b.out_channels == 6


def test_linear_layers_write_narrow_too(hooks_pay):
    model, x = make("ViT"), image(2, 3, IMAGE, IMAGE)
    layer = model.vit.layers[0]
    down = next(m for n, m in layer.named_modules() if n.endswith(("fc2", "output.dense")))
    zero(down, range(0, 16, 2))
    zero(layer.attention.o_proj, range(5))
    wanted = outputs(model, x)
    shrink(model, x)
    assert down.weight.shape[0] == 8
    assert layer.attention.o_proj.weight.shape[0] == 11
    assert difference(outputs(model, x), wanted) < 1e-5


def test_rounding_keeps_what_the_sum_has_anyway(hooks_pay):
    model, x = residual(), image(2, 3, 12, 12)
    shrink(model, x, multiple=2)
    assert model.head.in_channels == 6
    assert (model.stem.out_channels, model.b.out_channels) == (6, 4)


@pytest.mark.parametrize("make_model", [residual, lambda: padded(kernel_size=3, padding=1)])
def test_hooks_follow_the_model(make_model, hooks_pay):
    """To copies, pickles, state dicts, dtypes and memory formats, and into graphs."""
    model, x = make_model(), image(2, 3, 12, 12)
    wanted = outputs(model, x)
    shrink(model, x)
    assert difference(outputs(copy.deepcopy(model), x), wanted) < 1e-5
    assert difference(outputs(pickle.loads(pickle.dumps(model)), x), wanted) < 1e-5
    double = copy.deepcopy(model).double()
    assert difference(outputs(double, x.double()), wanted.double()) < 1e-5
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    found = outputs(last, x.to(memory_format=torch.channels_last))
    assert difference(found, wanted) < 1e-5
    assert found.is_contiguous(memory_format=torch.channels_last)
    emptied = copy.deepcopy(model)
    for tensor in emptied.state_dict().values():
        tensor.zero_()
    emptied.load_state_dict(model.state_dict())
    assert difference(outputs(emptied, x), wanted) < 1e-5
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    assert difference(outputs(compiled, x), wanted) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert difference(outputs(model, x).float(), wanted) < 2e-2


def test_gradients_are_those_of_the_unshrunk_model(hooks_pay):
    model, x = residual(norm=False).double(), image(2, 3, 12, 12).double()
    big = copy.deepcopy(model)
    shrink(model, x)
    for m in (model, big):
        m(x).square().sum().backward()
    torch.testing.assert_close(
        model.b.weight.grad, big.b.weight.grad[[0, 3, 4]][:, [0, 1, 2, 5, 6, 7]]
    )
    torch.testing.assert_close(model.head.weight.grad, big.head.weight.grad[:, [0, 3, 4, 5, 6, 7]])
    torch.testing.assert_close(model.stem.bias.grad, big.stem.bias.grad[3:])
    assert not any(name.endswith(tuple(BUFFERS)) for name, _ in model.named_parameters())


def test_a_layer_may_be_called_with_keywords():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = padded(kernel_size=3, padding=1)

        def forward(self, x):
            return self.layers[2](input=self.layers[1](self.layers[0](x)))

    model, x = Named(), image(2, 3, 6, 6)
    wanted = outputs(model, x)
    assert shrink(model, x).hooks
    assert difference(outputs(model, x), wanted) < 1e-5


def test_nothing_stays_behind_when_shrink_fails(hooks_pay):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = residual()

        def forward(self, x):
            return self.body(x) * self.body.b.weight.shape[0]

    model, x = Counting(), image(2, 3, 12, 12)
    keys, wanted = list(model.state_dict()), outputs(model, x)
    with pytest.raises(RuntimeError, match="the model is as before"):
        shrink(model, x)
    assert list(model.state_dict()) == keys
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(outputs(model, x), wanted)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("when", ["before", "after"])
def test_converted_layers(when, norm, hooks_pay):
    """Whoever measures neurons sees the layer's own, not the channels of the sum."""
    model, x = residual(norm), image(8, 3, 12, 12)
    wanted = outputs(model, x)
    if when == "before":
        neq.convert(model)
    shrink(model, x)
    if when == "after":
        neq.convert(model)
    assert difference(outputs(model, x), wanted) < 1e-5
    tracker = neq.Equilibrium(model, [x], exclude=())
    tracker.update()
    with torch.no_grad():
        model.b.weight[1].neg_()
    report = tracker.update()
    rows = {row.name: row for row in report.layers}
    assert rows["norm" if norm else "b"].neurons == 3
    assert not any(row.reason for row in report.layers)
    model.train()(x).square().sum().backward()
    entropies = psp_entropy(
        model, [(x, torch.zeros(8, dtype=torch.long))], classes=1, per="channel", layers=["b"]
    )
    assert len(entropies["b"]) == 3


def test_what_remembers_neurons_says_so(hooks_pay):
    model, x = neq.convert(residual()), image(2, 3, 12, 12)
    tracker = neq.Equilibrium(model, [x], exclude=())
    tracker.update()
    shrink(model, x)
    with pytest.raises(RuntimeError, match=r"8 neurons in layer .* make a new Equilibrium"):
        tracker.update()


def test_a_resnet_keeps_its_streams(hooks_pay):
    """Every branch of a real one narrows, and its sums keep what is live anywhere."""
    model, x = prune(make("ResNet-18")), image(2, 3, IMAGE, IMAGE)
    wanted = outputs(model, x)
    report = shrink(model, x)
    assert difference(outputs(model, x), wanted) < 1e-5
    for change in report.layers[:-1]:
        assert change.neurons[1] == change.neurons[0] // 2, change
