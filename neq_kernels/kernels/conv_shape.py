"""What the convolution kernels know of a call: its sizes, and how its operands lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from neq_kernels.kernels import DTYPES
from neq_kernels.kernels.configuration import APART, BESIDE, WIDE, Load

# Elements of the widest access, 16 bytes of the narrowest dtype.
_WIDEST = 8
_INT32 = 2**31 - 2**16
# Bytes of a load from which on it counts as wide.
_WIDE_BYTES = 8


@dataclass(frozen=True)
class Shape:
    """Sizes of a 2-d convolution. Window entries are (vertical, horizontal)."""

    images: int
    groups: int
    group_in: int
    group_out: int
    input: tuple[int, int]
    output: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def size(self) -> int:
        return self.groups * self.group_out

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def fan_in(self) -> int:
        return self.group_in * self.taps

    @property
    def positions(self) -> int:
        return self.images * self.output[0] * self.output[1]

    @property
    def point(self) -> bool:
        """Whether every output position reads just the input's own."""
        return self.taps == 1 and self.input == self.output and self.padding == (0, 0)

    @property
    def depthwise(self) -> bool:
        return self.group_in == 1 and self.groups > 1

    def long(self, *operands: Tensor) -> bool:
        """Whether positions or weights are too many for 32-bit arithmetic, or elements of an
        operand, its padding included, 2^31 elements apart or more."""
        plane = max(self.input[0] * self.input[1], self.output[0] * self.output[1])
        many = max(self.images * plane, self.size * self.fan_in)
        return many > _INT32 or any(map(self._reaches, operands))

    def _reaches(self, operand: Tensor) -> bool:
        around = (0, 0, *(2 * p + s for p, s in zip(self.padding, self.stride, strict=True)))
        reach = zip(operand.shape, around, operand.stride(), strict=True)
        return sum((size + more) * abs(step) for size, more, step in reach) > _INT32

    def window(self) -> dict[str, int]:
        """The window as the kernels' constants."""
        names = ("KERNEL", "STRIDE", "PADDING", "DILATION")
        pairs = zip(names, (self.kernel, self.stride, self.padding, self.dilation), strict=True)
        return {f"{name}_{axis}": pair[k] for name, pair in pairs for k, axis in enumerate("HW")}


def shape_of(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    window: Sequence[Sequence[int]],
    groups: int,
) -> Shape:
    """Sizes of the call: dy ``[N, O, P, Q]``, x ``[N, C, H, W]``, weight ``[O, C/groups, R, S]``;
    ``window`` is stride, padding and dilation.

    Raises:
        ValueError: the shapes do not belong together, or groups do not divide the channels.
    """
    stride, padding, dilation = window
    (images, channels, *input_), (size, group_in, *kernel) = x.shape, weight.shape
    if groups < 1 or size % groups or group_in * groups != channels:
        raise ValueError(
            f"groups: expected a divisor of {size} outputs and {channels} inputs with weight "
            f"[{size}, {channels} / groups, ...], got {groups} and weight {list(weight.shape)}"
        )
    output = [
        (h + 2 * p - d * (k - 1) - 1) // s + 1
        for h, p, d, k, s in zip(input_, padding, dilation, kernel, stride, strict=True)
    ]
    if list(dy.shape) != [images, size, *output]:
        raise ValueError(
            f"dy: expected {[images, size, *output]}, the output's shape for this input, weight, "
            f"stride, padding and dilation, got {list(dy.shape)}; pass the gradient of that output"
        )
    pairs = [(int(a), int(b)) for a, b in (input_, output, kernel, stride, padding, dilation)]
    return Shape(images, groups, group_in, size // groups, *pairs)


def check(dy: Tensor, x: Tensor, weight: Tensor | None, index: Tensor) -> None:
    """Refuse what a kernel would misread: it sees addresses, not tensors.

    Raises:
        TypeError: the dtypes of dy, x and weight differ, or are none that the kernels serve.
        ValueError: dy, x and the index are not on one device, not of this many channels, or not
            of a convolution in 1 or 2 dimensions.
    """
    if dy.dtype not in DTYPES or x.dtype != dy.dtype:
        raise TypeError(
            f"dy, x: expected both float32, float16 or bfloat16, got {dy.dtype} and {x.dtype}; "
            "cast one of them, or use another backend"
        )
    if weight is not None and (weight.dtype != dy.dtype or weight.device != dy.device):
        raise TypeError(
            f"weight: expected {dy.dtype} on {dy.device} like dy, got {weight.dtype} on "
            f"{weight.device}; cast or move one of them"
        )
    if not dy.device == x.device == index.device:
        raise ValueError(
            f"dy, x, index: expected one device, got {dy.device}, {x.device} and "
            f"{index.device}; move the layer and its input together"
        )
    if x.dim() not in (3, 4) or dy.dim() != x.dim():
        raise ValueError(
            f"x: expected [N, C, L] or [N, C, H, W] and dy alike, got {list(x.shape)} and "
            f"{list(dy.shape)}; convolutions in 3 dimensions are for another backend"
        )
    if index.numel() != dy.shape[1]:
        raise ValueError(
            f"index: expected a list over the {dy.shape[1]} channels of dy, got one over "
            f"{index.numel()}; pass the layer's own list"
        )


def dense_planes(tensor: Tensor) -> bool:
    """Whether the positions of each image and channel are neighbours in memory, row by row."""
    _, _, height, width = tensor.shape
    return (width == 1 or tensor.stride(3) == 1) and (height == 1 or tensor.stride(2) == width)


def rows_of(tensor: Tensor) -> Tensor | None:
    """``[N, C, H, W]`` as a view ``[N * H * W, C]``; None where strides do not allow it."""
    try:
        last = tensor.permute(0, 2, 3, 1)
        return last.view(-1, tensor.shape[1])
    except RuntimeError:
        return None


def unit(tensor: Tensor, channels: int, planes: bool) -> int:
    """The largest power of two, up to 8, of elements that a kernel may load at once: along planes,
    or along runs of so many contiguous channels."""
    if not planes and tensor.stride(1) != 1:
        return 1
    run, across = (tensor.shape[2] * tensor.shape[3], (0, 1)) if planes else (channels, (0, 2, 3))
    return gcd(_WIDEST, run, *(tensor.stride(d) for d in across if tensor.shape[d] > 1))


def load_of(operand: Tensor, unit: int) -> Load:
    """How ``operand`` is loaded, ``unit`` elements at a time."""
    if unit * operand.element_size() >= _WIDE_BYTES:
        return WIDE
    return APART if operand.stride(1) == 1 and operand.stride(3) != 1 else BESIDE


def taps_first(weight: Tensor) -> bool:
    """Whether the entries of a row lie as ``[R, S, C]`` (channels last), not as ``[C, R, S]``."""
    return not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
