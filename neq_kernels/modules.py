"""The layers that :func:`neq_kernels.convert` turns torch's into.

Each is a subclass of the torch layer it stands for, and converting changes only the class of the
module object: Parameters, hooks and everybody's references stay.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neq_kernels.autograd import ConvFunction, LinearFunction, conv1d_forward
from neq_kernels.gradients import ConvGeometry
from neq_kernels.layer import NEqLayer


class NEqLinear(NEqLayer, nn.Linear):
    """``nn.Linear`` whose backward computes the active output features only."""

    origin = nn.Linear

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def _sparse(self, mode: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _linear(self, mode, x, weight, bias, columns=False)


class _NEqConv1D(NEqLayer):
    """transformers' ``Conv1D``, a linear layer with weight ``[in, out]``: neurons are columns."""

    def _neuron_dim(self, name: str) -> int:
        return 1 if name == "weight" else 0

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert bias is not None
        return conv1d_forward(x, weight, bias)

    def _sparse(self, mode: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _linear(self, mode, x, weight, bias, columns=True)


def _linear(
    layer: NEqLayer, mode: str, x: Tensor, weight: Tensor, bias: Tensor | None, columns: bool
) -> Tensor:
    plan = None if mode == "opaque" else layer._plan
    return LinearFunction.apply(
        x, weight, bias, layer._index, layer._count, columns, layer.propagate, mode, plan
    )


class _NEqConvNd(NEqLayer, nn.modules.conv._ConvNd):
    channel_axis = 1

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)

    def _sparse(self, mode: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        batched = x.dim() == weight.dim()
        if not batched:
            x = x.unsqueeze(0)
        x, padding = self._pad(x)
        geometry = ConvGeometry(self.stride, padding, self.dilation, self.groups)
        plan = None if mode == "opaque" else self._plan
        y: Tensor = ConvFunction.apply(
            x, weight, bias, self._index, self._count, geometry, self.propagate, mode, plan
        )
        return y if batched else y.squeeze(0)

    def _pad(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """``x`` padded by what a convolution cannot pad itself, and the zeros left for it."""
        none = (0,) * len(self.stride)
        if self.padding_mode != "zeros":
            return F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), none
        if self.padding == "valid":
            return x, none
        if not isinstance(self.padding, str):
            return x, self.padding
        totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        # An even kernel needs one more zero at the end than at the beginning.
        extra = [side for total in reversed(totals) for side in (0, total % 2)]
        return F.pad(x, extra) if any(extra) else x, tuple(total // 2 for total in totals)


class NEqConv1d(_NEqConvNd, nn.Conv1d):
    """``nn.Conv1d`` whose backward computes the active output channels only."""

    origin = nn.Conv1d


class NEqConv2d(_NEqConvNd, nn.Conv2d):
    """``nn.Conv2d`` whose backward computes the active output channels only."""

    origin = nn.Conv2d


class NEqConv3d(_NEqConvNd, nn.Conv3d):
    """``nn.Conv3d`` whose backward computes the active output channels only."""

    origin = nn.Conv3d


class _NEqNorm(NEqLayer):
    """A norm layer: gamma and beta of frozen channels get no gradient, statistics keep running."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and self._active.is_full:
            self._bind_graph()
            return super(NEqLayer, self).forward(x)
        weight, bias = self.weight, getattr(self, "bias", None)
        mode = self._mode(x, weight, bias)
        if mode == "plain":
            return super(NEqLayer, self).forward(x)
        if mode == "some":
            return self._zeroed(x, weight, bias)
        return self._compute(x, self._constant(mode, "weight"), self._constant(mode, "bias"))

    def _constant(self, mode: str, name: str) -> Tensor | None:
        """A parameter whose frozen neurons, or all of them, are constants."""
        parameter = getattr(self, name, None)
        if parameter is None or not parameter.requires_grad:
            return parameter
        if mode in ("opaque", "masked"):
            return self._mask_rows(parameter, name)
        self._bind_graph()
        return parameter.detach()


class _NEqBatchNorm(_NEqNorm, nn.modules.batchnorm._BatchNorm):
    channel_axis = 1

    def _compute(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        self._check_input_dim(x)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        use_batch = self.training or (self.running_mean is None and self.running_var is None)
        tracked = not self.training or self.track_running_stats
        return F.batch_norm(
            x,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            weight,
            bias,
            use_batch,
            momentum,
            self.eps,
        )


class NEqBatchNorm1d(_NEqBatchNorm, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` whose gamma and beta freeze channel by channel."""

    origin = nn.BatchNorm1d


class NEqBatchNorm2d(_NEqBatchNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose gamma and beta freeze channel by channel."""

    origin = nn.BatchNorm2d


class NEqBatchNorm3d(_NEqBatchNorm, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` whose gamma and beta freeze channel by channel."""

    origin = nn.BatchNorm3d


class NEqLayerNorm(_NEqNorm, nn.LayerNorm):
    """``nn.LayerNorm`` whose gamma and beta freeze channel by channel."""

    origin = nn.LayerNorm

    def _compute(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class NEqRMSNorm(_NEqNorm, nn.RMSNorm):
    """``nn.RMSNorm`` whose gamma freezes channel by channel."""

    origin = nn.RMSNorm

    def _compute(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


CLASSES: dict[type[nn.Module], type[NEqLayer]] = {
    cls.origin: cls
    for cls in (
        NEqLinear, NEqConv1d, NEqConv2d, NEqConv3d, NEqBatchNorm1d, NEqBatchNorm2d,
        NEqBatchNorm3d, NEqLayerNorm, NEqRMSNorm,
    )
}  # fmt: skip


def sparse_class(module: nn.Module) -> type[NEqLayer] | None:
    """The class that ``module`` converts to, or None. transformers is not imported to ask."""
    kind = type(module)
    if (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D"):
        return __getattr__("NEqConv1D")
    return CLASSES.get(kind)


def __getattr__(name: str) -> Any:
    # NEqConv1D must derive from transformers' class, which not everybody has installed: it is
    # made when first asked for, and pickle asks for it by this name.
    if name != "NEqConv1D":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from transformers.pytorch_utils import Conv1D

    made = type("NEqConv1D", (_NEqConv1D, Conv1D), {"origin": Conv1D, "__module__": __name__})
    globals()["NEqConv1D"] = made
    return made
