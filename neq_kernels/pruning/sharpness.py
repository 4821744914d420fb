"""How sharp a minimum is: largest eigenvalue and trace of the Hessian, by products with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neq_kernels.convert import all_active
from neq_kernels.equilibrium.probe import move
from neq_kernels.equilibrium.undisturbed import undisturbed, unwrapped

from .layers import parameters, prunable
from .masks import masked_parameters

Vector = list[Tensor]


@dataclass(frozen=True)
class Sharpness:
    """The curvature of the mean loss over a data set.

    Attributes:
        eigenvalue: the Hessian's largest eigenvalue.
        trace: its trace, the mean over probes.
        trace_error: the standard error of that mean; NaN for a single probe.
        iterations: of the power iteration; a second one, where the first found a negative
            eigenvalue, included.
        converged: whether the eigenvalue's last relative change was below the tolerance.
    """

    eigenvalue: float
    trace: float
    trace_error: float
    iterations: int
    converged: bool


def sharpness(
    model: nn.Module,
    loader: Iterable[tuple[Any, Tensor]],
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    *,
    iterations: int = 100,
    tolerance: float = 1e-3,
    probes: int = 20,
    seed: int = 0,
) -> Sharpness:
    """Largest eigenvalue, by power iteration, and trace, by Hutchinson's estimator, of the Hessian
    of the mean loss in the parameters that train and are not pruned (the measures of ICANN 2020,
    arXiv 2004.14765).

    In eval mode: norms with their running statistics, no dropout. Every product goes over the whole
    loader once; frozen neurons count, as the surface does not depend on who trains. Power iteration
    finds the eigenvalue of the largest magnitude; if that is negative, a second one on the shifted
    Hessian finds the largest.

    Args:
        loader: batches ``(inputs, labels)`` that can be iterated over again and again.
        loss: ``loss(output, labels)``, the mean over the batch, twice differentiable.
        iterations: at most so many products per power iteration.
        tolerance: relative change of the eigenvalue below which it has converged.
        probes: random vectors of +-1 for the trace.
        seed: of all random vectors.

    Raises:
        ValueError: a number is not positive, no batch, nothing that trains, or the loss is NaN or
            infinite.
        TypeError: ``loader`` is exhausted after one pass.
    """
    _check(iterations, tolerance, probes, loader)
    inner = unwrapped(model)
    trained = [p for p in inner.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("model: expected parameters that require a gradient, got none")
    hessian = _Hessian(inner, loader, loss, trained)
    generator = torch.Generator().manual_seed(seed)
    with all_active(inner), undisturbed(inner), torch.enable_grad():
        value, steps, converged = _power(hessian, generator, iterations, tolerance, 0.0)
        if value < 0:
            shifted, more, converged = _power(hessian, generator, iterations, tolerance, -value)
            value, steps = value + shifted, steps + more
        samples = []
        for _ in range(probes):
            vector = hessian.restricted([_signs(p, generator) for p in trained])
            samples.append(_dot(vector, hessian.times(vector)))
    mean = sum(samples) / probes
    spread = sum((sample - mean) ** 2 for sample in samples)
    error = math.sqrt(spread / (probes * (probes - 1))) if probes > 1 else math.nan
    return Sharpness(value, mean, error, steps, converged)


class _Hessian:
    """The Hessian of the mean loss over a loader, as something that vectors are multiplied by."""

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        loss: Callable[[Any, Tensor], Tensor],
        trained: list[nn.Parameter],
    ) -> None:
        self.model, self.loader, self.loss, self.trained = model, loader, loss, trained
        self.masks = _masks(model)

    def times(self, vector: Vector) -> Vector:
        total: Vector = [torch.zeros_like(p) for p in self.trained]
        samples = 0
        device = self.trained[0].device
        for batch in self.loader:
            inputs, labels = move(tuple(batch), device)
            value = self.loss(self.model(inputs), labels)
            if not value.isfinite():
                raise ValueError(f"loss: expected a finite one, got {float(value.detach())}")
            gradients = torch.autograd.grad(
                value, self.trained, create_graph=True, allow_unused=True
            )
            pairs = [(g, v) for g, v in zip(gradients, vector, strict=True) if g is not None]
            product = sum((g * v).sum() for g, v in pairs if g.requires_grad)
            if isinstance(product, Tensor):
                rows = torch.autograd.grad(product, self.trained, allow_unused=True)
                for sum_, row in zip(total, rows, strict=True):
                    if row is not None:
                        sum_.add_(row, alpha=len(labels))
            samples += len(labels)
        if not samples:
            raise ValueError("loader: expected at least one batch, got none")
        return self.restricted([t / samples for t in total])

    def restricted(self, vector: Vector) -> Vector:
        """``vector`` with zeros where the parameter is pruned."""
        return [
            v * self.masks[p] if p in self.masks else v
            for p, v in zip(self.trained, vector, strict=True)
        ]


def _power(
    hessian: _Hessian,
    generator: torch.Generator,
    iterations: int,
    tolerance: float,
    shift: float,
) -> tuple[float, int, bool]:
    """The eigenvalue of H + shift that is largest in magnitude, the products it took, and whether
    it has converged."""
    vector = hessian.restricted([_normal(p, generator) for p in hessian.trained])
    value = math.inf
    for step in range(1, iterations + 1):
        length = math.sqrt(_dot(vector, vector))
        if length == 0:
            return 0.0, step, True
        vector = [v / length for v in vector]
        product = hessian.times(vector)
        product = [p.add(v, alpha=shift) for p, v in zip(product, vector, strict=True)]
        before, value = value, _dot(vector, product)
        if abs(value - before) <= tolerance * abs(value):
            return value, step, True
        vector = product
    return value, iterations, False


def _masks(model: nn.Module) -> dict[nn.Parameter, Tensor]:
    if not any(parameters(m) for m in model.modules()):
        return {}
    try:
        layers = prunable(model)
    except ValueError:
        return {}
    return {p: mask for module in layers.values() for p, mask in masked_parameters(module)}


def _dot(a: Vector, b: Vector) -> float:
    return float(sum((x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)))


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return (2 * torch.randint(2, like.shape, generator=generator) - 1).to(like)


def _check(iterations: int, tolerance: float, probes: int, loader: Any) -> None:
    for name, value in (("iterations", iterations), ("probes", probes)):
        if value < 1:
            raise ValueError(f"{name}: expected a number from 1 on, got {value!r}")
    if not tolerance > 0:
        raise ValueError(f"tolerance: expected a number above 0, got {tolerance!r}")
    if iter(loader) is loader:
        raise TypeError("loader: expected batches that can be iterated over again, got an iterator")
