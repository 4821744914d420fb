"""What Triton compiles, and when it compiles anew: never for another set of active channels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from triton_aot import DEVICES, channels_of, record, specialised

from neq_kernels import kernels
from neq_kernels.active import bucket
from neq_kernels.kernels.conv import conv_backward
from neq_kernels.kernels.linear_backward import linear_backward

pytestmark = pytest.mark.skipif(kernels.interpreted(), reason="interpreted kernels do not compile")

ROOT = Path(__file__).parent.parent
H200 = DEVICES["sm_90"]
SIZE = 256


def linear(count, dtype=torch.bfloat16):
    dy, x, weight = (
        torch.empty(shape, dtype=dtype, device="meta")
        for shape in ((4096, SIZE), (4096, 512), (SIZE, 512))
    )
    return record(H200, linear_backward, dy, x, weight, channels_of(SIZE, count), True, False)


def convolution(last, groups=1):
    def launches(count, dtype=torch.bfloat16):
        operands = [
            torch.empty(shape, dtype=dtype, device="meta").to(
                memory_format=torch.channels_last if last else torch.contiguous_format
            )
            for shape in ((32, SIZE, 14, 14), (32, SIZE, 14, 14), (SIZE, SIZE // groups, 3, 3))
        ]
        window = ((1, 1), (1, 1), (1, 1), groups)
        return record(H200, conv_backward, *operands, channels_of(SIZE, count), True, *window)

    return launches


LAYERS = {
    "linear": linear,
    "nchw": convolution(False),
    "nhwc": convolution(True),
    "groups": convolution(True, 4),
    "depthwise": convolution(False, SIZE),
}
# What the cost function chooses: it may do so per bucket.
CHOICES = ("ROWS", "COLUMNS", "DEPTH", "PARTIAL", "GATHER", "GATHER_WEIGHT")


@pytest.mark.parametrize("layer", LAYERS)
def test_another_set_compiles_nothing_but_another_choice(layer):
    seen: dict[object, set[object]] = {}
    for count in range(1, SIZE):
        for launch in LAYERS[layer](count):
            # Widths and steps of the sum, which differ from set to set, must not matter.
            chosen = tuple(launch.arguments.get(name) for name in CHOICES)
            options = tuple(sorted(launch.options.items()))
            seen.setdefault((launch.name, chosen, options), set()).add(specialised(launch))
    assert all(len(binaries) == 1 for binaries in seen.values())
    # A few tiles, whole or split, in two kernels: a few dozen seconds once in a machine's life.
    assert len(seen) <= 16


@pytest.mark.parametrize("layer", LAYERS)
def test_sets_of_one_bucket_share_everything(layer):
    for count in (97, 100, 104, 112):
        assert bucket(count) == 112
        pairs = zip(LAYERS[layer](count), LAYERS[layer](112), strict=True)
        assert all(specialised(a) == specialised(b) and a.grid == b.grid for a, b in pairs)


COMPILE = """
import sys
sys.path[:0] = ["tests"]
from test_triton_compilations import H200, linear
from triton_aot import compiled
from triton.backends.nvidia.compiler import CUDABackend
if sys.argv[1] == "again":
    def never(*arguments):
        raise AssertionError("compiled what was on disk")
    CUDABackend.make_ttir = CUDABackend.make_cubin = never
print(len([compiled(launch, H200) for launch in linear(40)]))
"""


def test_what_was_compiled_survives_the_process(tmp_path):
    def run(when):
        return subprocess.run(
            [sys.executable, "-c", COMPILE, when],
            cwd=ROOT,
            env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=600,
        )

    unmade = run("again")
    assert "compiled what was on disk" in unmade.stderr
    for when in ("first", "again"):
        made = run(when)
        assert made.returncode == 0, made.stderr
        assert int(made.stdout) >= 2


@pytest.fixture
def settings():
    before = (
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,
    )
    yield
    torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before


def precisions(launches):
    """What float32 operands are multiplied in; that the machine code follows, the tests of every
    configuration read."""
    found = {launch.arguments.get("PRECISION") for launch in launches(40, torch.float32)}
    return found - {None}


@pytest.mark.parametrize(("product", "conv"), [("tf32", "ieee"), ("ieee", "tf32")])
def test_float32_products_follow_the_setting_of_their_own_operation(product, conv, settings):
    torch.backends.cuda.matmul.fp32_precision = product
    torch.backends.cudnn.conv.fp32_precision = conv
    assert precisions(linear) == {product}
    assert precisions(LAYERS["nchw"]) == {conv}


@pytest.mark.parametrize("allowed", [True, False])
def test_the_older_names_of_the_settings_count_too(allowed, settings):
    torch.backends.cuda.matmul.allow_tf32 = allowed
    assert precisions(linear) == {"tf32" if allowed else "ieee"}
