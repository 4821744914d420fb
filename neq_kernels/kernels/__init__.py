"""Triton kernels for the tensor cores, one operator per file. Imports triton only to launch them.

Under ``TRITON_INTERPRET=1`` (set before anything imports triton) the same kernels run on CPU
tensors, slowly and without a compiler: that is how they are tested where there is no GPU.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

OLDEST_TRITON = (3, 4)
LEAST_CAPABILITY = (8, 0)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INSTALL = "pip install 'neq_kernels[triton]'"


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def why_not(
    device: str | None = None, dtype: torch.dtype | None = None, spatial: int = 0
) -> str | None:
    """Why the kernels cannot serve such tensors, with the remedy; None if they can.

    Args:
        device: kind of device; None asks whether the kernels can run at all.
        dtype: None for any.
        spatial: dimensions a convolution slides over; 0 for a linear layer.
    """
    reason = _why_no_triton() or (None if interpreted() else _why_no_gpu())
    if reason:
        return reason
    serves = "cpu" if interpreted() else "cuda"
    if device not in (None, serves):
        return f"serves {serves}, not {device}"
    if dtype is not None and dtype not in DTYPES:
        return f"serves float32, float16 and bfloat16, not {dtype}"
    if spatial > 2:
        return f"serves convolutions in 1 and 2 dimensions, not {spatial}"
    return None


@cache
def _why_no_triton() -> str | None:
    try:
        if find_spec("triton") is None:
            return f"triton is not installed; {INSTALL}"
        found = version("triton")
    except PackageNotFoundError:
        # pytorch-triton and vendors' builds go by other names; what torch brings is recent enough.
        return None
    except ImportError:
        return f"triton is not installed; {INSTALL}"
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_TRITON:
        return f"expected triton >= 3.4, found {found}; {INSTALL}"
    return None


def _why_no_gpu() -> str | None:
    # Not cached: a process may look before it has set CUDA_VISIBLE_DEVICES.
    if torch.version.hip:
        return "serves NVIDIA GPUs; this torch is built for ROCm"
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA; install a CUDA build"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        return (
            f"{torch.cuda.get_device_name()} has compute capability {capability[0]}."
            f"{capability[1]}, triton needs 8.0; the other backends serve it"
        )
    return None
