"""What shrink leaves on a layer where fewer channels alone would not compute the same.

Forward hooks that work with buffers of the layer, so that they follow it to other devices and
dtypes, into ``state_dict``, copies and pickles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neq_kernels.layer import NEqLayer

CONSTANT_INPUTS = "constant_inputs"
CONSTANT_OUTPUTS, LIVE_OUTPUTS = "constant_outputs", "live_outputs"
_CONVOLUTIONS: dict[type, Any] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
_POOLS: dict[type, int] = {nn.MaxPool1d: -2, nn.MaxPool2d: -3, nn.MaxPool3d: -4}
_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d


def kind(module: nn.Module) -> type:
    """The torch layer whose forward ``module`` has, converted or not."""
    return module.origin if isinstance(module, NEqLayer) else type(module)


def is_convolution(module: nn.Module) -> bool:
    """Whether its forward is one convolution, not a transposed one."""
    return kind(module) in _CONVOLUTIONS


def output_dim(module: nn.Module) -> int | None:
    """The dimension of the output that counts neurons; None of a layer that takes no hook."""
    if kind(module) is nn.Linear:
        return -1
    if kind(module) in _NORMS:
        return 1
    if kind(module) in _POOLS:
        return _POOLS[kind(module)]
    return 1 - module.weight.dim() if is_convolution(module) else None  # type: ignore[operator]


@dataclass(frozen=True)
class ConstantInputs:
    """Adds what channels gave that were constant, and are gone from the input of a convolution.

    Behind zero padding that is no constant but a plane, the same for all samples: the convolution
    of ones with the module's buffer ``constant_inputs`` ``[outputs, 1, *kernel]``, which holds the
    sums of the removed weights times their constants.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        x: Tensor = args[0] if args else kwargs["input"]
        weight: Tensor = getattr(module, CONSTANT_INPUTS)
        ones = x.new_ones((1, 1, *x.shape[2 - weight.dim() :]), dtype=weight.dtype)
        convolution = _CONVOLUTIONS[kind(module)]
        plane = convolution(ones, weight, None, self.stride, self.padding, self.dilation)
        plane = plane.squeeze(0).to(output.dtype)
        # A second tensor of that size would take as long as the sum itself.
        return output + plane if torch.is_grad_enabled() else output.add_(plane)


@dataclass(frozen=True)
class ConstantOutputs:
    """Puts the outputs that are constant, and gone from the layer, between those that it computes.

    For layers that write into a sum, where channels have to stand side by side: buffer
    ``constant_outputs`` ``[channels of the sum]``, and ``live_outputs`` ``[neurons]``, the place of
    each neuron among them.
    """

    dim: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        constants: Tensor = getattr(module, CONSTANT_OUTPUTS)
        shape, thin = list(output.shape), [1] * output.dim()
        shape[self.dim], thin[self.dim] = len(constants), -1
        whole = constants.to(output.dtype).reshape(thin).expand(shape)
        whole = whole.clone(memory_format=_memory_format(output))
        return whole.index_copy_(self.dim, getattr(module, LIVE_OUTPUTS), output)


def _memory_format(tensor: Tensor) -> torch.memory_format:
    for rank, form in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.dim() == rank and tensor.is_contiguous(memory_format=form):
            return torch.contiguous_format if tensor.is_contiguous() else form
    return torch.contiguous_format
