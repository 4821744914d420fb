"""LOBSTER: parameters the loss does not feel shrink (arXiv 2011.09905)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from neq_kernels.optim.rows import RowMap
from neq_kernels.optim.stepping import check_gradient

from .layers import parameters, prunable
from .masks import apply_masks


class LOBSTER:
    """Loss-based sensitivity regularisation: call ``step()`` after the optimizer's.

        w -= strength * w * max(0, 1 - |dL/dw|)

    for every parameter of Linear, convolution and batch-norm layers, biases included (LOBSTER,
    arXiv 2011.09905). Follow it with a schedule that zeroes what has become small:
    :class:`neq_kernels.pruning.Gradual`.

    The gradients are those that the optimizer has used: step before ``zero_grad``. Any optimizer,
    gradient accumulation, and ``GradScaler``, whose ``step`` unscales them; where it found an
    overflow, entries that are NaN or infinite leave their parameter alone. Pruned parameters stay
    zero, and neurons frozen by NEq stay bit-identical. The strength is not scaled by the learning
    rate.

    Args:
        model: any model with such layers, also converted, compiled or wrapped in DDP.
        strength: lambda, 1e-4 in the paper.
        exclude: name patterns (``fnmatch``) of layers to leave alone.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``strength`` is not in [0, 1), a pattern matches nothing, or there is no layer.
    """

    def __init__(
        self, model: nn.Module, strength: float, *, exclude: str | Iterable[str] = ()
    ) -> None:
        self.model = model
        self.strength = check_strength(strength)
        self._layers = prunable(model, exclude)
        self._rows = RowMap(model)

    @torch.no_grad()
    def step(self) -> None:
        """Shrink the parameters, by the gradients that are there now.

        Raises:
            RuntimeError: there is no gradient, or a sparse one.
        """
        rows = self._rows.look_up()
        shrinking, gradients = self._with_gradient()
        if not gradients and len(rows) == 0:
            raise RuntimeError(
                "gradients: expected those of the optimizer's step, got none; call step() after "
                "loss.backward() and before zero_grad()"
            )
        if gradients:
            insensitive = torch._foreach_abs(gradients)
            torch._foreach_clamp_max_(insensitive, 1.0)
            torch._foreach_sub_(insensitive, 1.0)  # now -max(0, 1 - |g|)
            for parameter, change in zip(shrinking, insensitive, strict=True):
                change.nan_to_num_(nan=0.0)
                if parameter in rows:
                    rows[parameter].frozen.zero(change)
            data: list[Tensor] = [p.detach() for p in shrinking]
            torch._foreach_addcmul_(data, data, insensitive, value=self.strength)
        apply_masks(self.model)

    def _with_gradient(self) -> tuple[list[nn.Parameter], list[Tensor]]:
        found = [
            (parameter, parameter.grad)
            for module in self._layers.values()
            for parameter in parameters(module).values()
            if parameter.grad is not None
        ]
        for _, gradient in found:
            check_gradient(gradient)
        return [p for p, _ in found], [g for _, g in found]

    def close(self) -> None:
        """Nothing is attached to the model; there for the sake of SeReNe's interface."""

    def __enter__(self) -> LOBSTER:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LOBSTER({type(self.model).__name__}, strength={self.strength:g})"


def check_strength(strength: float) -> float:
    """``strength`` if it is one.

    Raises:
        ValueError: not in [0, 1).
    """
    if not 0 <= strength < 1:
        raise ValueError(f"strength: expected lambda in [0, 1), 1e-4 say, got {strength!r}")
    return float(strength)
