"""What each layer's backward meets in a real step: shapes, strides and dtypes, no data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neq_kernels.convert import converted_layers
from neq_kernels.equilibrium.undisturbed import undisturbed
from neq_kernels.example import outputs_with_graph
from neq_kernels.gradients import ConvGeometry, Needed
from neq_kernels.layer import NEqLayer


@dataclass(frozen=True)
class Meta:
    """A tensor without its data."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Meta:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)

    def make(self) -> Tensor:
        """A tensor of random numbers that looks the same."""
        made = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        return made.normal_()


@dataclass(frozen=True)
class Call:
    """One call of a layer, as its backward sees it.

    Attributes:
        size: neurons.
        conv: a convolution's geometry, None for a linear layer.
        columns: whether neurons are columns of the weight (transformers' Conv1D).
        needed: which gradients the step asks for.
    """

    x: Meta
    dy: Meta
    weight: Meta
    size: int
    conv: ConvGeometry | None
    columns: bool
    needed: Needed
    propagate: str


def capture(model: nn.Module, example_input: Any) -> dict[str, list[Call]]:
    """The calls of every converted layer with a matrix of weights, by name, from one forward and
    backward in eval mode; the model stays as it was. All its neurons must be active."""
    calls: dict[str, list[Call]] = {}
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        stack.enter_context(torch.enable_grad())
        for name, layer in converted_layers(model).items():
            if layer.weight.dim() > 1 and layer.weight.requires_grad:
                calls[name] = []
                stack.enter_context(
                    layer.register_forward_hook(_noting(layer, calls[name]), prepend=True)
                )
        leaves = outputs_with_graph(model, example_input)
        parameters = [p for p in model.parameters() if p.requires_grad]
        ones = [torch.ones_like(leaf) for leaf in leaves]
        torch.autograd.grad(leaves, parameters, ones, allow_unused=True)
    return calls


def _noting(layer: NEqLayer, calls: list[Call]) -> Callable[..., None]:
    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]

        def backward(dy: Tensor) -> None:
            calls.append(_call(layer, x, dy))

        output.register_hook(backward)

    return note


def _call(layer: Any, x: Tensor, dy: Tensor) -> Call:
    bias = getattr(layer, "bias", None)
    needed = Needed(x.requires_grad, True, bias is not None and bias.requires_grad)
    weight, conv = layer.weight, None
    if layer.channel_axis == 1:
        if x.dim() < weight.dim():
            x, dy = x.unsqueeze(0), dy.unsqueeze(0)
        x, padding = layer._pad(x)
        conv = ConvGeometry(layer.stride, padding, layer.dilation, layer.groups)
    # Under autocast the layer computes in the output's dtype, whatever its parameters are.
    x, weight = x.to(dy.dtype), weight.detach().to(dy.dtype)
    columns = layer._neuron_dim("weight") == 1
    return Call(
        Meta.of(x), Meta.of(dy), Meta.of(weight), layer.size, conv, columns, needed, layer.propagate
    )
