"""Pruned parameters: zeros that stay zero while training goes on.

A zero alone says nothing: layers that start at zero (biases, LoRA's B, zero-initialised residual
branches) are to learn. So pruning leaves a mask on each layer, and a neuron all of whose incoming
weights are masked is frozen for the kernels of a converted layer too, beside those that NEq froze:
its rows are never computed, and ``protect`` and ``neq.optim`` hold them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from neq_kernels.layer import NEqLayer
from neq_kernels.sets import sets_of

from .layers import by_neuron, connects, parameters, prunable

_MASKS = "_pruning_masks"


@torch.no_grad()
def keep_zeros(model: nn.Module, *, exclude: str | Iterable[str] = ()) -> None:
    """Declare every zero among the parameters of prunable layers pruned.

    For models that were pruned elsewhere, by hand or in a checkpoint; what this module prunes is
    declared already. Then ``step()`` of SeReNe and LOBSTER, or :func:`apply_masks`, keeps the zeros
    after each step of the optimizer. Zeros declared before and moved since are let go.

    Args:
        model: converted or not; in wrappers or not.
        exclude: name patterns (``fnmatch``) of layers to leave alone, such as ones that start at
            zero and are to learn.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: a pattern matches no layer, or there is nothing to prune.
    """
    for module in prunable(model, exclude).values():
        _place(module, {name: p != 0 for name, p in parameters(module).items()})
    _freeze_pruned(model)


@torch.no_grad()
def apply_masks(model: nn.Module) -> None:
    """Set pruned parameters to zero again: call it after the optimizer's step. SeReNe's and
    LOBSTER's ``step()`` does."""
    pairs = [
        (parameter, mask)
        for module in prunable(model).values()
        for parameter, mask in masked_parameters(module)
    ]
    if pairs:
        torch._foreach_mul_([p for p, _ in pairs], [m for _, m in pairs])


def get_masks(model: nn.Module) -> dict[str, Tensor]:
    """What is pruned: a bool mask, False where pruned, by parameter name; only parameters in which
    something is. For :func:`set_masks`, and a checkpoint."""
    return {
        f"{layer}.{name}".lstrip("."): mask.clone()
        for layer, module in prunable(model).items()
        for name, mask in module.__dict__.get(_MASKS, {}).items()
    }


@torch.no_grad()
def set_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Declare pruned what is False in ``masks`` (as :func:`get_masks` gives them), and nothing
    else. Parameters are not touched before :func:`apply_masks`.

    Raises:
        KeyError: a name is not of a parameter that can be pruned; nothing has changed.
        ValueError: a mask is not bool or of another shape than its parameter; nothing has changed.
    """
    owners = {
        f"{layer}.{name}".lstrip("."): (module, name, parameter)
        for layer, module in prunable(model).items()
        for name, parameter in parameters(module).items()
    }
    placed: dict[nn.Module, dict[str, Tensor]] = {module: {} for module, _, _ in owners.values()}
    for key, mask in masks.items():
        if key not in owners:
            raise KeyError(
                f"masks: expected names of weights and biases of Linear, Conv and BatchNorm layers "
                f"of the model, got {key!r}"
            )
        module, name, parameter = owners[key]
        if mask.dtype != torch.bool or mask.shape != parameter.shape:
            raise ValueError(
                f"masks: expected a bool tensor of shape {tuple(parameter.shape)} for {key!r}, got "
                f"{mask.dtype} of {tuple(mask.shape)}"
            )
        placed[module][name] = mask.to(parameter.device, copy=True)
    for module, own in placed.items():
        _place(module, own)
    _freeze_pruned(model)


def is_masked(module: nn.Module) -> bool:
    """Whether something in ``module`` itself is declared pruned."""
    return _MASKS in module.__dict__


def masked_parameters(module: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter of ``module`` in which something is pruned, with its mask beside it.

    Raises:
        RuntimeError: the parameter has changed its shape since.
    """
    masks: dict[str, Tensor] = module.__dict__.get(_MASKS, {})
    found = []
    for name, mask in masks.items():
        parameter = getattr(module, name)
        if mask.shape != parameter.shape:
            raise RuntimeError(
                f"model: expected {name!r} of a {type(module).__name__} as it was pruned, of shape "
                f"{tuple(mask.shape)}, got {tuple(parameter.shape)}; neq.pruning.keep_zeros(model) "
                "again after changing layers"
            )
        if mask.device != parameter.device:
            mask = masks[name] = mask.to(parameter.device)
        found.append((parameter, mask))
    return found


def _place(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Where nothing is pruned, no mask has to be applied."""
    module.__dict__.pop(_MASKS, None)
    if pruned := {name: mask for name, mask in masks.items() if not mask.all()}:
        module.__dict__[_MASKS] = pruned


def _freeze_pruned(model: nn.Module) -> None:
    """Tell the layers which neurons are left; those to be converted find it on themselves."""
    modules = list(prunable(model).values())
    for module, kept in zip(modules, sets_of([_kept(m) for m in modules]), strict=True):
        left = None if kept.is_full else kept
        if isinstance(module, NEqLayer):
            module.set_kept(left)
        else:
            module.__dict__["_kept"] = left


def _kept(module: nn.Module) -> Tensor:
    """bool ``[neurons]``: whether anything is left of each neuron. A norm's consists of gamma and
    beta; elsewhere one without incoming weights is a constant, and its bias stays as it is."""
    masks = module.__dict__.get(_MASKS, {})
    own = parameters(module)
    masks = {name: masks.get(name, torch.ones_like(p, dtype=torch.bool)) for name, p in own.items()}
    if connects(module):
        return by_neuron(module, masks["weight"]).any(1)
    return torch.stack(list(masks.values())).any(0)
