"""Operands whose elements lie more than 2^31 apart: every address a kernel makes must hold 64 bits.

Such operands are views of memory that is reserved but hardly touched. The kernels must make of them
what they make of the same numbers side by side.
Runs on a GPU, or interpreted: TRITON_INTERPRET=1 python -m pytest tests/gpu/test_triton_far.py
"""

import mmap

import pytest
import torch
from cases import randn

from neq_kernels.active import lists

pytest.importorskip("triton")
from neq_kernels import kernels
from neq_kernels.kernels.configuration import Configuration, Tile
from neq_kernels.kernels.conv import Options, conv_backward
from neq_kernels.kernels.linear_dgrad import linear_dgrad
from neq_kernels.kernels.linear_wgrad import linear_wgrad

pytestmark = pytest.mark.gpu

CONFIGURATION = Configuration(Tile(16, 16, 16, 4, 1), 2)
DTYPE = torch.float16
# Two such steps are beyond 32 bits.
APART = (1 << 30) + 16


@pytest.fixture(scope="module")
def reserve(triton_device):
    """Makes tensors of so many elements; here the same untouched pages of memory for all."""
    if kernels.interpreted():
        size = 4 * APART * DTYPE.itemsize
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        memory = torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=DTYPE)
        return lambda elements: memory[:elements]
    return lambda elements: torch.empty(elements, dtype=DTYPE, device=triton_device)


@pytest.fixture(scope="module")
def triton_device():
    device = "cpu" if kernels.interpreted() else "cuda"
    if reason := kernels.why_not(device):
        pytest.skip(reason)
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GB of free GPU memory")
    return device


def spread_out(near, axis, reserve):
    """``near`` with its elements along ``axis`` far apart, the others as they were."""
    others = [d for d in sorted(range(near.dim()), key=near.stride) if d != axis]
    strides, step = [0] * near.dim(), 1
    for d in others:
        strides[d], step = step, step * near.shape[d]
    strides[axis] = APART
    reach = (near.shape[axis] - 1) * APART + step
    assert reach > 1 << 31, "not far enough to matter"
    far = reserve(reach).as_strided(near.shape, strides)
    return far.copy_(near)


def active(index, size, device):
    padded = torch.full((size,), -1, dtype=torch.int32)
    padded[: len(index)] = torch.tensor(index, dtype=torch.int32)
    return lists(padded.to(device), torch.tensor(len(index)))


def operands(device, *shapes):
    return [randn(shape, DTYPE, seed).to(device) for seed, shape in enumerate(shapes, 1)]


@pytest.mark.parametrize("form", ["gathered", "packed"])
@pytest.mark.parametrize("operand", ["tokens of dy", "channels of dy", "tokens of x", "inputs"])
def test_linear_wgrad(operand, form, reserve, triton_device):
    tokens, size, inputs = [
        3 if operand.startswith(name) or operand == name else many
        for name, many in (("tokens", 40), ("channels", 20), ("inputs", 24))
    ]
    dy, x = operands(triton_device, (tokens, size), (tokens, inputs))
    axis = 0 if operand.startswith("tokens") else 1
    far = [dy, x]
    far["dy" not in operand] = spread_out(far["dy" not in operand], axis, reserve)
    channels = active([0, 2], size, triton_device)
    options = {"form": form, "configuration": CONFIGURATION}
    ours = linear_wgrad(*far, channels, True, False, **options)
    near = linear_wgrad(dy, x, channels, True, False, **options)
    assert near[0][2].any()
    assert all(torch.equal(a, b) for a, b in zip(ours, near, strict=True))


@pytest.mark.parametrize("form", ["gathered", "packed"])
@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("operand", ["tokens", "channels", "rows of w", "columns of w"])
def test_linear_dgrad(operand, columns, form, reserve, triton_device):
    size = 3 if operand in ("channels", "rows of w") else 20
    inputs = 3 if operand == "columns of w" else 24
    dy, weight = operands(triton_device, (3, size), (inputs, size) if columns else (size, inputs))
    far_dy, far_weight = dy, weight
    if operand in ("tokens", "channels"):
        far_dy = spread_out(dy, int(operand == "channels"), reserve)
    else:
        far_weight = spread_out(weight, (operand == "columns of w") != columns, reserve)
    channels = active([0, 2], size, triton_device)
    options = {"form": form, "configuration": CONFIGURATION}
    ours = linear_dgrad(far_dy, far_weight, channels, columns, **options)
    near = linear_dgrad(dy, weight, channels, columns, **options)
    assert near.any()
    assert torch.equal(ours, near)


# Inputs and outputs of a group, groups, kernel: every way a kernel walks over positions.
CONVOLUTIONS = {
    "taps": (64, 4, 1, 3),
    "flat": (3, 3, 1, 3),
    "pointwise": (20, 4, 1, 1),
    "groups": (3, 4, 2, 3),
    "depthwise": (1, 1, 4, 3),
}


def shapes_of(name):
    group_in, group_out, groups, kernel = CONVOLUTIONS[name]
    return {
        "dy": (3, groups * group_out, 3, 3),
        "x": (3, groups * group_in, 3, 3),
        "weight": (groups * group_out, group_in, kernel, kernel),
    }


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("name", "operand", "axis"),
    [
        (name, operand, axis)
        for name in CONVOLUTIONS
        for operand, shape in shapes_of(name).items()
        for axis, length in enumerate(shape)
        if length in (3, 4)  # enough of them to be too far apart, and not more than need be
    ],
)
def test_convolutions(name, operand, axis, last, reserve, triton_device):
    near = dict(
        zip(shapes_of(name), operands(triton_device, *shapes_of(name).values()), strict=True)
    )
    if last:
        near = {k: one.contiguous(memory_format=torch.channels_last) for k, one in near.items()}
    far = near | {operand: spread_out(near[operand], axis, reserve)}
    _, _, groups, kernel = CONVOLUTIONS[name]
    channels = active([0, 2], near["dy"].shape[1], triton_device)
    window = ((1, 1), (kernel // 2,) * 2, (1, 1), groups)
    options = Options(configuration=CONFIGURATION, form="packed" if last else "gathered")
    ours = conv_backward(*far.values(), channels, True, *window, options=options)
    expected = conv_backward(*near.values(), channels, True, *window, options=options)
    assert all(gradient.any() for gradient in expected)
    # Strides decide in which order positions are walked, hence how sums round.
    for found, truth in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=2e-2, atol=2e-2)
