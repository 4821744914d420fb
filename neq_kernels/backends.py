"""Which function computes an operator: the table (operator, backend) -> function.

Left alone, the first backend of :data:`ORDER` that can serve the call is taken. An explicit
request, ``NEQ_BACKEND=torch`` in the environment or :func:`use`, is obeyed or raises.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from math import prod
from typing import Any

import torch
from torch import Tensor

from neq_kernels import kernels, native, reference
from neq_kernels.active import Lists

ORDER = ("triton", "native", "torch")
GRADIENTS = (
    "pack_channels",
    "linear_wgrad",
    "linear_backward",
    "conv_wgrad",
    "conv_backward",
    "depthwise_wgrad",
)
# What training needs besides; a backend that was asked for and has none leaves it to the others.
BESIDE = ("channel_moments", "compact", "row_sgd", "row_adamw")
OPERATORS = (*GRADIENTS, *BESIDE)
TRITON_OPERATORS = ("linear_wgrad", "linear_backward", "conv_wgrad", "conv_backward")
# Steps of a window, all dimensions multiplied, that conv_wgrad_rows and conv_dgrad can cut x and dX
# into: not the patches of a ViT, which a plain product serves as well.
MOST_STEPS = 64
# What of native runs on a GPU.
NATIVE_ON_CUDA = OPERATORS
_NATIVE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _native_pack(
    dy: Tensor, index: Tensor, width: int, dim: int, bias: bool
) -> tuple[Tensor, Tensor]:
    packed, sums = torch.ops.neq_kernels.pack_channels(dy, index, width, dim, bias)
    return packed, sums


def _native_depthwise(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    lists: Lists,
    bias: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor]:
    dw, db = torch.ops.neq_kernels.depthwise_wgrad(
        dy, x, weight, lists.index, lists.count, stride, padding, dilation, bias
    )
    return dw, db


def _native_rows(
    dy: Tensor, x: Tensor, lists: Lists, bias: bool, size: Sequence[int], strides: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    dw, db = torch.ops.neq_kernels.conv_wgrad_rows(
        dy, x, lists.index, lists.count, size, strides, stride, padding, dilation, bias
    )
    return dw, db


def _native_dgrad(
    dy: Tensor,
    weight: Tensor,
    lists: Lists,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    channels_last: bool,
) -> Tensor:
    dx: Tensor = torch.ops.neq_kernels.conv_dgrad(
        dy, weight, lists.padded, lists.count, size, stride, padding, dilation, channels_last
    )
    return dx


def _native_conv(operator: str) -> Callable[..., Any]:
    function = getattr(reference, operator)
    return partial(function, pack=_native_pack, depthwise=_native_depthwise)


def _direct_conv_wgrad(
    dy: Tensor, x: Tensor, weight: Tensor, lists: Lists, bias: bool, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    size, strides = weight.shape, weight.stride()
    return _native_rows(dy, x, lists, bias, size, strides, stride, padding, dilation)


_DIRECT: dict[str, Callable[..., Any]] = {
    "linear_wgrad": partial(reference.linear_wgrad, rows=_native_rows),
    "conv_wgrad": _direct_conv_wgrad,
    "conv_dgrad": _native_dgrad,
    **{
        operator: partial(getattr(reference, operator), rows=_native_rows, dgrad=_native_dgrad)
        for operator in ("linear_backward", "conv_backward")
    },
}


def _native_moments(a: Tensor, b: Tensor, dim: int, per_sample: bool) -> Tensor:
    moments: Tensor = torch.ops.neq_kernels.channel_moments(a, b, dim, per_sample)
    return moments


def _native_row_sgd(
    params: list[Tensor], grads: list[Tensor], momentum_buffers: list[Tensor], *options: Any
) -> None:
    if not params:
        return  # without a tensor there is no device to choose
    torch.ops.neq_kernels.row_sgd(params, grads, momentum_buffers, *options)
    # So that autograd notices a parameter which a graph has saved and a step has changed.
    torch.autograd.graph.increment_version(params)


def _native_row_adamw(params: list[Tensor], *options: Any) -> None:
    if not params:
        return
    torch.ops.neq_kernels.row_adamw(params, *options)
    torch.autograd.graph.increment_version(params)


def _native_compact(layers: Sequence[Tensor], epsilon: float = 0.0) -> Tensor:
    lists: Tensor = torch.ops.neq_kernels.compact(
        [layer.detach().contiguous() for layer in layers], epsilon
    )
    return lists


_NATIVE: dict[str, Callable[..., Any]] = {
    "pack_channels": _native_pack,
    "depthwise_wgrad": _native_depthwise,
    "conv_wgrad": _native_conv("conv_wgrad"),
    "conv_backward": _native_conv("conv_backward"),
    "channel_moments": _native_moments,
    "compact": _native_compact,
    "row_sgd": _native_row_sgd,
    "row_adamw": _native_row_adamw,
}


def _best_pack(
    dy: Tensor, index: Tensor, width: int, dim: int, bias: bool
) -> tuple[Tensor, Tensor]:
    able = why_not("native", dy.device.type, dy.dtype) is None
    return (_native_pack if able else reference.pack_channels)(dy, index, width, dim, bias)


def _triton(operator: str) -> Callable[..., Any]:
    def launch(*arguments: Any, **options: Any) -> Any:
        # Triton takes a second to import: not before a layer calls it.
        module = "conv" if operator.startswith("conv_") else operator
        function = getattr(import_module(f"neq_kernels.kernels.{module}"), operator)
        return function(*arguments, pack=_best_pack, **options)

    return launch


def _table() -> dict[tuple[str, str], Callable[..., Any]]:
    table: dict[tuple[str, str], Callable[..., Any]] = {}
    for operator in OPERATORS:
        function = getattr(reference, operator)
        table[operator, "torch"] = function
        table[operator, "native"] = _NATIVE.get(operator) or partial(function, pack=_native_pack)
    table.update({(operator, "triton"): _triton(operator) for operator in TRITON_OPERATORS})
    return table


TABLE = _table()


class use:  # noqa: N801, reads as a verb
    """Require ``backend`` for every gradient, and for what else it has, from now on or for the
    length of a ``with`` block.

    ``use(None)`` gives the choice back. Layers raise where the backend cannot serve them.

    Raises:
        ValueError: no such backend.
        RuntimeError: the backend is not available here; says why.
    """

    def __init__(self, backend: str | None) -> None:
        _check(backend, "backend")
        self._before = _requested
        _set(backend)

    def __enter__(self) -> use:
        return self

    def __exit__(self, *exception: object) -> None:
        _set(self._before)


def resolve(
    operator: str, device: str, dtype: torch.dtype | None = None, spatial: int = 0
) -> tuple[str, Callable[..., Any]]:
    """The name and the function of the backend that computes ``operator`` on this kind of tensor.

    Without a dtype: of any that the operator takes. ``spatial`` is how many dimensions a
    convolution slides over.

    Raises:
        RuntimeError: the requested backend, or every backend, is unable; gives each one's reason.
    """
    key = (operator, device, dtype, spatial)
    if key not in _resolved:
        lacks = operator in BESIDE and (operator, _requested) not in TABLE
        candidates = (_requested,) if _requested and not lacks else ORDER
        reasons = {name: _refusal(name, operator, device, dtype, spatial) for name in candidates}
        able = [name for name, reason in reasons.items() if reason is None]
        if not able:
            refused = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            remedy = ", or ask for none: neq_kernels.backends.use(None)" if _requested else ""
            raise RuntimeError(
                f"{operator}: expected a backend for {dtype or 'it'} on {device}, but {refused}; "
                f"use a supported dtype and device{remedy}"
            )
        _resolved[key] = (able[0], TABLE[operator, able[0]])
    return _resolved[key]


def direct(
    operator: str, device: str, dtype: torch.dtype, spatial: int = 0, stride: Sequence[int] = ()
) -> Callable[..., Any] | None:
    """linear_wgrad, linear_backward, conv_wgrad, conv_dgrad or conv_backward by a kernel that reads
    dY's active channels where they are, for linear layers and convolutions without groups; None
    where there is none."""
    key = (operator, device, dtype, spatial)
    if key not in _direct:
        able = device == "cpu" and spatial <= 2 and why_not("native", device, dtype) is None
        whole = "conv_backward" if operator == "conv_dgrad" else operator
        able = able and resolve(whole, device, dtype, spatial)[0] == "native"
        _direct[key] = _DIRECT[operator] if able else None
    return _direct[key] if not stride or prod(stride) <= MOST_STEPS else None


def _refusal(
    backend: str, operator: str, device: str, dtype: torch.dtype | None, spatial: int
) -> str | None:
    if (operator, backend) not in TABLE:
        return f"has no {operator}"
    if backend == "native" and device == "cuda" and operator not in NATIVE_ON_CUDA:
        return f"has no {operator} on cuda"
    return why_not(backend, device, dtype, spatial)


def why_not(
    backend: str,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    spatial: int = 0,
) -> str | None:
    """Why ``backend`` cannot serve tensors of this device and dtype; None if it can.

    Without a device or a dtype: why it cannot serve any. ``spatial`` as in :func:`resolve`.
    """
    if backend == "torch":
        return None
    if backend == "triton":
        return kernels.why_not(device, dtype, spatial)
    if not native.available():
        return native.why_not()
    if device not in (None, "cpu", "cuda"):
        return f"serves the cpu and cuda, not {device}"
    if device == "cuda" and (reason := _native_cuda_why_not()):
        return reason
    if dtype is not None and dtype not in _NATIVE_DTYPES:
        return f"serves float32, float64, float16 and bfloat16, not {dtype}"
    return None


def _native_cuda_why_not() -> str | None:
    usable = torch.cuda.is_available()
    return native.cuda_why_not(torch.cuda.get_device_capability() if usable else None)


def report() -> str:
    """One line per backend: available, or the reason why not; and what was requested."""
    serves = {
        "triton": "cpu, interpreted" if kernels.interpreted() else "cuda",
        "native": "cpu" if _native_cuda_why_not() else "cpu and cuda",
        "torch": "any device",
    }
    lines = [f"{name:8s} {why_not(name) or f'available ({serves[name]})'}" for name in ORDER]
    return "\n".join([*lines, f"requested: {_requested or 'none, the first able one is taken'}"])


def _check(backend: str | None, argument: str) -> None:
    if backend is None:
        return
    if backend not in ORDER:
        raise ValueError(f"{argument}: expected one of {', '.join(ORDER)}, got {backend!r}")
    reason = why_not(backend)
    if reason:
        raise RuntimeError(f"{argument}={backend}: not available here: {reason}")


def _set(backend: str | None) -> None:
    global _requested
    _requested = backend
    _resolved.clear()
    _direct.clear()


_resolved: dict[tuple[str, str, torch.dtype | None, int], tuple[str, Callable[..., Any]]] = {}
_direct: dict[tuple[str, str, torch.dtype, int], Callable[..., Any] | None] = {}
_requested: str | None = None


def requested_by_environment() -> None:
    """Obey ``NEQ_BACKEND``; called once when the package is imported."""
    backend = os.environ.get("NEQ_BACKEND") or None
    _check(backend, "NEQ_BACKEND")
    _set(backend)
