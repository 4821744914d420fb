"""The layers that are pruned, and where their neurons are."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from neq_kernels.equilibrium.undisturbed import unwrapped


def prunable(model: nn.Module, exclude: str | Iterable[str] = ()) -> dict[str, nn.Module]:
    """The layers of ``model`` (or inside its wrappers) that pruning sees, by name: Linear,
    transformers' Conv1D, convolutions, transposed ones too, and batch norms with parameters.

    Args:
        exclude: name patterns (``fnmatch``) of layers to leave alone.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: a pattern matches no layer, or no layer is left.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    layers = {
        name: module
        for name, module in unwrapped(model).named_modules()
        if (connects(module) or isinstance(module, _BatchNorm))
        and isinstance(getattr(module, "weight", None), nn.Parameter)
    }
    for pattern in [exclude] if isinstance(exclude, str) else exclude:
        left = {name: module for name, module in layers.items() if not fnmatch(name, pattern)}
        if len(left) == len(layers):
            raise ValueError(
                f"exclude: expected patterns that match a layer, but {pattern!r} matches none of "
                f"{', '.join(list(layers)[:4])}, ..."
            )
        layers = left
    if not layers:
        raise ValueError(
            f"model: expected a Linear, Conv or BatchNorm layer with parameters to prune, got "
            f"{type(model).__name__} without any"
        )
    return layers


def connects(module: nn.Module) -> bool:
    """Whether a neuron of ``module`` has incoming weights: all prunable layers but norms."""
    return isinstance(module, nn.Linear | _ConvNd) or _is_columns(module)


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weight of ``module``, and its bias if it has one."""
    named = ((name, getattr(module, name, None)) for name in ("weight", "bias"))
    return {name: p for name, p in named if isinstance(p, nn.Parameter)}


def neurons(module: nn.Module) -> int:
    """How many neurons a prunable layer has."""
    weight: Tensor = parameters(module)["weight"]
    if isinstance(module, _ConvTransposeNd):
        return weight.shape[1] * module.groups
    return weight.shape[1 if _is_columns(module) else 0]


def channel_axis(module: nn.Module) -> int:
    """The axis of a prunable layer's batched output that counts neurons."""
    return 1 if isinstance(module, _ConvNd | _BatchNorm) else -1


def by_neuron(module: nn.Module, weight: Tensor) -> Tensor:
    """``weight``, or anything of its shape, as ``[neurons, incoming]``."""
    if isinstance(module, _ConvTransposeNd):
        inputs = weight.unflatten(0, (module.groups, -1))
        return inputs.transpose(1, 2).flatten(0, 1).flatten(1)
    if _is_columns(module):
        return weight.t()
    return weight.reshape(len(weight), -1)


def spread(module: nn.Module, values: Tensor) -> Tensor:
    """One value per neuron, ``[neurons]``, in a shape that broadcasts over the weight."""
    weight = parameters(module)["weight"]
    if isinstance(module, _ConvTransposeNd):
        per_input = values.view(module.groups, 1, -1).expand(-1, len(weight) // module.groups, -1)
        return per_input.reshape(*weight.shape[:2], *(1,) * (weight.dim() - 2))
    if _is_columns(module):
        return values.view(1, -1)
    return values.view(-1, *(1,) * (weight.dim() - 1))


def _is_columns(module: nn.Module) -> bool:
    """transformers' Conv1D, whose weight is ``[in, out]``; not imported to ask."""
    return any(
        (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")
        for kind in type(module).__mro__
    )
