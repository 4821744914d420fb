"""What only a GPU has: streams, several devices, tensors too large for a processor's test, graphs
that torch.compile captures, and a host that waits for nothing."""

import copy

import pytest
import torch
from cases import CONV, LINEAR, by_name, gradients, inside, randn
from torch import nn

import neq_kernels as neq

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

CASES = [by_name(LINEAR, "blocks"), by_name(CONV, "plain"), by_name(CONV, "depthwise")]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    with torch.device("cuda"):
        yield


def step(case, layer, x, dy):
    found = gradients(layer, x, dy)
    return {name: gradient.clone() for name, gradient in found.items()}


def operands(case):
    x = case.x()
    return x, randn(case.layer()(x).shape, torch.float32, 3)


@each_case
@pytest.mark.parametrize("propagate", ["all", "active"])
def test_another_stream_gives_the_same(case, propagate, path):
    layer = inside(case.layer(), propagate)
    layer.set_active([1, 4])
    x, dy = operands(case)
    expected = step(case, layer, x, dy)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # What the kernels must wait for, and would be ahead of on another stream.
        torch.cuda._sleep(10_000_000)
        late = dy * 1.0
        found = step(case, layer, x, late)
    stream.synchronize()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=0)


@each_case
def test_a_device_that_is_not_the_current_one(case, path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    layer = inside(case.layer())
    layer.set_active([1, 4])
    x, dy = operands(case)
    expected = step(case, layer, x, dy)
    layer.to("cuda:1")
    assert layer.active.index.tolist() == [1, 4]
    there = x.detach().to("cuda:1").requires_grad_()
    found = step(case, layer, there, dy.to("cuda:1"))
    for name, gradient in expected.items():
        assert found[name].device.index == 1
        torch.testing.assert_close(found[name].to("cuda:0"), gradient)


@each_case
@pytest.mark.parametrize("propagate", ["all", "active"])
def test_nothing_waits_for_the_device(case, propagate, path):
    if path == "packed" and case.name == "depthwise" and propagate == "active":
        pytest.skip("groups are laid out anew on the host: the rule never packs them on a GPU")
    layer = inside(case.layer(), propagate)
    layer.set_active([1, 4])
    x, dy = operands(case)
    step(case, layer, x, dy)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(case, layer, x, dy)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_case
def test_deterministic_mode_gives_the_same_bits(case, path):
    layer = inside(case.layer())
    layer.set_active([1, 4])
    x, dy = operands(case)
    torch.use_deterministic_algorithms(True)
    try:
        one, other = step(case, layer, x, dy), step(case, layer, x, dy)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("propagate", ["all", "active"])
@pytest.mark.parametrize("kind", ["tokens", "images", "channels last"])
def test_more_elements_than_32_bits_count(kind, propagate, path):
    """dY and X hold 2^31 elements and more, zeros but at the end, where the gradient comes from."""
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of GPU memory")
    half = {"dtype": torch.bfloat16, "device": "cuda"}
    if kind == "tokens":
        layer, shape = nn.Linear(64, 64, **half), (2**31 // 64 + 5, 64)
    else:
        layer, shape = (
            nn.Conv2d(64, 64, 3, padding=1, **half),
            (2**31 // (64 * 64**2) + 3, 64, 64, 64),
        )
    few = copy.deepcopy(layer)
    x, dy = torch.zeros(shape, **half), torch.zeros(shape, **half)
    x[-2:], dy[-2:] = torch.randn_like(x[-2:]), torch.randn_like(dy[-2:])
    if kind == "channels last":
        x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
    neq.convert(nn.Sequential(layer, few), propagate=propagate)
    for one in (layer, few):
        one.set_active([0, 17, 63])
    last = slice(-3, None)
    found = gradients(layer, x.requires_grad_(), dy)
    expected = gradients(few, x[last].detach().requires_grad_(), dy[last])
    for name in ("weight", "bias"):
        torch.testing.assert_close(found[name], expected[name], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(found["x"][-2:], expected["x"][-2:], rtol=2e-2, atol=2e-2)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_graphs_that_the_compiler_captures_follow_the_set():
    torch.manual_seed(0)
    model = neq.convert(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 8)))
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    x = torch.randn(32, 16)
    for index in ([1, 2, 3], [5], list(range(8)), [40, 41, 42]):
        neq.set_active(model, {"0": index})
        for _ in range(3):  # to warm up, to capture, to replay
            model.zero_grad()
            torch.compiler.cudagraph_mark_step_begin()
            compiled(x).square().sum().backward()
            ours = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        model(x).square().sum().backward()
        eager = [p.grad for p in model.parameters()]
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
