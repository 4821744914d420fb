"""The configurations that are compiled for every GPU are all there are: none can be chosen besides.

Whatever a geometry, its launches are of kinds that test_triton_linear_aot.py and
test_triton_conv_aot.py compile and read.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
import test_triton_conv_aot as conv_aot
import test_triton_linear_aot as linear_aot
from triton_aot import DEVICES, TARGETS, channels_of, record
from triton_kinds import kind_of

from neq_kernels import kernels
from neq_kernels.kernels.conv import conv_backward, conv_wgrad
from neq_kernels.kernels.linear_backward import linear_backward
from neq_kernels.kernels.linear_wgrad import linear_wgrad

pytestmark = pytest.mark.skipif(kernels.interpreted(), reason="interpreted kernels do not compile")

# Kernels without tensor cores, which have no configuration to choose.
OTHERS = ("spread_kernel", "depthwise_wgrad_kernel", "depthwise_dgrad_kernel")
SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
GPUS = st.sampled_from([DEVICES[name] for name in sorted(DEVICES)])
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


@cache
def kinds(target):
    """What is compiled for it."""
    return {
        kind_of(launch)
        for module in (linear_aot, conv_aot)
        for case in module.CASES
        if target in case
        for launch, _ in module.launches(case)
        if launch.name not in OTHERS
    }


@pytest.fixture(params=["tf32", "ieee"])
def float32(request):
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = request.param
    torch.backends.cudnn.conv.fp32_precision = request.param
    yield
    torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before


def up_to(most):
    """Integers of every magnitude."""
    bits = st.integers(0, most.bit_length() - 1)
    return bits.flatmap(lambda bit: st.integers(1 << bit, min(2 << bit, most)))


def check(launches, gpu):
    # A GPU runs what was compiled for the newest of the targets that it can run.
    major = min(gpu.capability[0], 10)
    target = f"sm_{major}0"
    for launch in launches:
        if launch.name not in OTHERS:
            assert kind_of(launch) in kinds(target)


@SETTINGS
@given(data=st.data(), gpu=GPUS, dtype=DTYPES)
def test_linear(float32, data, gpu, dtype):
    tokens, inputs, size = (data.draw(up_to(most)) for most in (65536, 16384, 16384))
    multiple = data.draw(st.sampled_from((1, 8, 16)), label="multiple of")
    tokens, inputs, size = (-(-n // multiple) * multiple for n in (tokens, inputs, size))
    columns, transposed = data.draw(st.booleans()), data.draw(st.booleans(), label="transposed")

    def empty(*shape):
        return torch.empty(shape, dtype=dtype, device="meta")

    dy = empty(size, tokens).t() if transposed else empty(tokens, size)
    x, weight = empty(tokens, inputs), empty(inputs, size) if columns else empty(size, inputs)
    channels = channels_of(size, data.draw(st.integers(1, size), label="active"))
    both = record(gpu, linear_backward, dy, x, weight, channels, True, columns)
    alone = record(gpu, linear_wgrad, dy, x, channels, False, columns)
    check([*both, *alone], gpu)


@SETTINGS
@given(data=st.data(), gpu=GPUS, dtype=DTYPES)
def test_convolutions(float32, data, gpu, dtype):
    groups = data.draw(st.sampled_from((1, 1, 1, 2, 8, 32)), label="groups")
    fan_in, fan_out = (data.draw(up_to(most)) for most in (1024, 1024))
    kernel = data.draw(st.sampled_from((1, 2, 3, 5, 7)), label="kernel")
    stride = data.draw(st.sampled_from((1, 1, 2, 3)), label="stride")
    padding = data.draw(st.integers(0, kernel // 2), label="padding")
    side = kernel + data.draw(up_to(224), label="side") - 1
    images = data.draw(up_to(512), label="images")
    out = (side + 2 * padding - kernel) // stride + 1
    shapes = (
        (images, groups * fan_out, out, out),
        (images, groups * fan_in, side, side),
        (groups * fan_out, fan_in, kernel, kernel),
    )
    formats = [
        torch.channels_last if data.draw(st.booleans(), label="last") else torch.contiguous_format
        for _ in shapes
    ]
    operands = [
        torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
        for shape, memory_format in zip(shapes, formats, strict=True)
    ]
    size = groups * fan_out
    channels = channels_of(size, data.draw(st.integers(1, size), label="active"))
    arguments = (*operands, channels, True, (stride,) * 2, (padding,) * 2, (1, 1), groups)
    both = record(gpu, conv_backward, *arguments)
    alone = record(gpu, conv_wgrad, *arguments)
    check([*both, *alone], gpu)


def test_a_tile_that_is_not_compiled_would_be_seen():
    """The kinds tell tiles apart: of one product, by the tile alone."""
    case = linear_aot.CASES[0]
    ((launch, _), *_) = linear_aot.launches(case)
    wider = replace(launch, arguments={**launch.arguments, "COLUMNS": 512})
    assert kind_of(launch) in kinds(case[1])
    assert all(kind_of(wider) not in kinds(target) for target in TARGETS)
