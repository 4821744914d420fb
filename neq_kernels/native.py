"""The native extension: loaded on first use, and never missed loudly.

``import neq_kernels`` works without it; :func:`why_not` then says exactly what is wrong.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_REBUILD = "rebuild with pip install --no-build-isolation --force-reinstall --no-deps -e ."


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    """The extension module, or why there is none. Importing it registers the operators."""
    if find_spec("neq_kernels._C") is None:
        return None, _why_missing()
    try:
        module = importlib.import_module("neq_kernels._C")
    except ImportError as error:
        built = f"built for torch >= 2.10, this is torch {torch.__version__}"
        return None, f"the native extension does not load ({built}): {error}; {_REBUILD}"
    torch.library.register_fake("neq_kernels::pack_channels", _fake_pack_channels)
    torch.library.register_fake("neq_kernels::channel_moments", _fake_channel_moments)
    torch.library.register_fake("neq_kernels::depthwise_wgrad", _fake_depthwise_wgrad)
    torch.library.register_fake("neq_kernels::conv_wgrad_rows", _fake_conv_wgrad_rows)
    torch.library.register_fake("neq_kernels::conv_dgrad", _fake_conv_dgrad)
    for operator in ("row_sgd", "row_adamw"):
        torch.library.register_fake(f"neq_kernels::{operator}", _fake_in_place)
    torch.library.register_fake("neq_kernels::compact", _fake_compact)
    if name := os.environ.get("NEQ_CPU_ISA"):
        module.set_cpu_isa(name)
    return module, None


def _fake_pack_channels(
    dy: Tensor, index: Tensor, width: int, dim: int, bias: bool
) -> tuple[Tensor, Tensor]:
    """Shapes and strides as python/pack_channels.cpp allocates them: channels_last where dy is."""
    shape = list(dy.shape)
    shape[dim] = width
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    keeps = dim % dy.dim() == 1 and dy.dim() in formats and dy.stride(1) == 1
    memory_format = formats[dy.dim()] if keeps and not dy.is_contiguous() else None
    packed = torch.empty(
        shape,
        dtype=dy.dtype,
        device=dy.device,
        memory_format=memory_format or torch.contiguous_format,
    )
    return packed, dy.new_empty(width if bias else 0)


def _fake_channel_moments(a: Tensor, b: Tensor, dim: int, per_sample: bool) -> Tensor:
    samples = [a.shape[0]] if per_sample else []
    return a.new_empty([3, *samples, a.shape[dim]], dtype=torch.float64)


def _fake_depthwise_wgrad(
    dy: Tensor, x: Tensor, weight: Tensor, index: Tensor, width: int, *window: Any
) -> tuple[Tensor, Tensor]:
    dw = dy.new_empty_strided(weight.shape, weight.stride())
    return dw, dy.new_empty(dy.shape[1] if window[-1] else 0)


def _fake_conv_wgrad_rows(
    dy: Tensor, x: Tensor, index: Tensor, width: int, dw_size: Sequence[int],
    dw_stride: Sequence[int], *window: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    dw = dy.new_empty_strided(list(dw_size), list(dw_stride))
    return dw, dy.new_empty(dy.shape[1] if window[-1] else 0)


def _fake_conv_dgrad(
    dy: Tensor, weight: Tensor, index: Tensor, width: int, size: Sequence[int], *window: Any
) -> Tensor:
    return torch.empty(
        (dy.shape[0], weight.shape[1], *size),
        dtype=dy.dtype,
        device=dy.device,
        memory_format=torch.channels_last if window[-1] else torch.contiguous_format,
    )


def _fake_in_place(*arguments: Any) -> None:
    """Returns nothing: what it computes is written into its arguments."""


def _fake_compact(layers: Sequence[Tensor], epsilon: float) -> Tensor:
    length = len(layers) + sum(layer.shape[0] for layer in layers)
    return layers[0].new_empty(length, dtype=torch.int32)


def _why_missing() -> str:
    others = sorted(path.name for path in Path(__file__).parent.glob("_C.*"))
    if others:
        return (
            f"the native extension was built for another Python ({', '.join(others)}); {_REBUILD}"
        )
    return (
        "the native extension was not built (installed with NEQ_NATIVE=0, or run from a source "
        f"tree); {_REBUILD}"
    )


def available() -> bool:
    """Whether the native operators can be called: ``torch.ops.neq_kernels.pack_channels``.

    Raises:
        ValueError: ``NEQ_CPU_ISA`` names an instruction set that this machine does not have.
    """
    return _load()[0] is not None


def why_not() -> str | None:
    """Why the native operators are not available, with the remedy; None if they are."""
    return _load()[1]


def build_info() -> dict[str, Any]:
    """What was built: ``compiler``, ``flags``, ``torch_target`` (the oldest torch it runs under),
    ``torch_built_with``, ``cuda`` (its version, None where built without), ``cuda_missing`` (why),
    ``cuda_architectures`` (``sm_90a``: machine code, ``compute_100``: PTX), ``cpu_isas`` and
    ``sources`` (see :func:`neq_kernels.sources.digest`).

    Raises:
        RuntimeError: the native extension is not available.
    """
    return dict(_module().build_info())


def cuda_why_not(capability: tuple[int, int] | None = None) -> str | None:
    """Why the native CUDA operators cannot run here, or on a GPU of this compute capability, with
    the remedy; None if they can. Needs no GPU and wakes none."""
    module, reason = _load()
    if module is None:
        return reason
    info, (runtime, driver) = build_info(), module.cuda_versions()
    if not info["cuda"]:
        return f"the native extension was built without CUDA: {info['cuda_missing']}; {_REBUILD}"
    serves = f"the NVIDIA driver serves CUDA up to {driver // 1000}.{driver % 1000 // 10}"
    if not driver:
        return "there is no NVIDIA driver"
    if driver // 1000 < runtime // 1000:
        return (
            f"built with CUDA {info['cuda']}, but {serves}: update the driver, or build with an "
            "older CUDA toolkit"
        )
    if capability is None or _has_code(capability, info["cuda_architectures"], driver >= runtime):
        return None
    number = "{}{}".format(*capability)
    return (
        f"built for {', '.join(info['cuda_architectures'])}, not for compute capability "
        f"{number[:-1]}.{number[-1]}; {_REBUILD}, with NEQ_CUDA_ARCHITECTURES={number}"
    )


def _has_code(capability: tuple[int, int], codes: list[str], ptx: bool) -> bool:
    """sm_80 runs on 8.0 to 8.9, sm_90a on 9.0 alone; compute_80 (PTX) on all from 8.0 on, where the
    driver is no older than the compiler."""
    for code in codes:
        kind, number = code.split("_")
        major, minor = divmod(int(number.rstrip("af")), 10)
        same_major = major == capability[0] and minor <= capability[1]
        if number.endswith("a"):
            runs = (major, minor) == capability
        elif kind == "sm" or number.endswith("f"):
            runs = same_major
        else:
            runs = (major, minor) <= capability
        if runs and (kind == "sm" or ptx):
            return True
    return False


def cpu_isa() -> str:
    """The instruction set that the CPU kernels use: the best this machine has, unless forced.

    Raises:
        RuntimeError: the native extension is not available.
    """
    return str(_module().cpu_isa())


def set_cpu_isa(name: str) -> None:
    """Force the instruction set of the CPU kernels, for the whole process; so does ``NEQ_CPU_ISA``.

    Raises:
        RuntimeError: the native extension is not available.
        ValueError: this machine does not have that instruction set.
    """
    _module().set_cpu_isa(name)


def _module() -> ModuleType:
    module, reason = _load()
    if module is None:
        raise RuntimeError(reason)
    return module
