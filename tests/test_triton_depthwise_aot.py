"""The kernels of depthwise convolutions, in every block of taps, compiled for GPUs not here."""

import pytest
import torch

pytest.importorskip("triton")
from triton_aot import DEVICES, SPILLED, TARGETS, channels_of, compile_all, record

from neq_kernels import kernels
from neq_kernels.kernels.conv import conv_backward
from neq_kernels.kernels.conv_depthwise import block_of

pytestmark = pytest.mark.skipif(kernels.interpreted(), reason="interpreted kernels do not compile")

CHANNELS, ACTIVE = 256, 40
# A window for every block of taps, and one of several blocks; stride.
WINDOWS = [
    ((1, 1), 1),
    ((1, 2), 1),
    ((2, 2), 1),
    ((1, 5), 1),
    ((3, 3), 1),
    ((3, 3), 2),
    ((7, 7), 1),
]
CASES = [
    (target, dtype, last, kernel, stride)
    for dtype in (torch.bfloat16, torch.float32)
    for last in (False, True)
    for kernel, stride in WINDOWS
    for target in TARGETS
    # The others differ in how many taps a thread has: seen on one GPU.
    if target == "sm_90" or kernel == (3, 3)
]


def launches(case):
    target, dtype, last, kernel, stride = case
    device, padding = DEVICES[target], tuple(k // 2 for k in kernel)
    out = [(28 + 2 * p - k) // stride + 1 for p, k in zip(padding, kernel, strict=True)]
    operands = [
        torch.empty(
            shape, dtype=dtype, device="meta",
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )
        for shape in ((32, CHANNELS, *out), (32, CHANNELS, 28, 28), (CHANNELS, 1, *kernel))
    ]  # fmt: skip
    window = ((stride, stride), padding, (1, 1), CHANNELS)
    made = record(device, conv_backward, *operands, channels_of(CHANNELS, ACTIVE), True, *window)
    return [(launch, device) for launch in made]


@pytest.fixture(scope="module")
def built():
    return compile_all(CASES, launches)


def test_the_windows_have_every_block():
    every = {block_of(taps, last) for taps in range(1, 200) for last in (False, True)}
    tested = {block_of(k[0] * k[1], last) for _, _, last, k, _ in CASES}
    assert tested == every


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_block(case, built):
    names = {kernel.name for kernel in built[case]}
    assert names == {"depthwise_wgrad_kernel", "depthwise_dgrad_kernel", "spread_kernel"}
    for kernel in built[case]:
        assert kernel.spilled <= SPILLED, (
            f"{kernel.name}: {kernel.usage['REG']} registers do not do"
        )
        assert kernel.shared <= DEVICES[case[0]].shared
