"""One threshold for the whole network, found by bisection (LOBSTER, arXiv 2011.09905)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neq_kernels.equilibrium.undisturbed import undisturbed, unwrapped

from .layers import parameters, prunable
from .masks import apply_masks, get_masks, set_masks
from .metrics import share_removed, share_zeroed

Evaluate = Callable[[nn.Module], Any]


@dataclass(frozen=True)
class Pruned:
    """What one pruning did.

    Attributes:
        threshold: parameters below it in magnitude were zeroed.
        loss_before, loss: what ``evaluate`` gave before and after; None if it was not asked.
        evaluations: how often it was asked.
        zeroed, removed: shares of zeroed parameters and of removed neurons now, 0 to 1.
    """

    threshold: float
    loss_before: float | None
    loss: float | None
    evaluations: int
    zeroed: float
    removed: float


def threshold_search(
    model: nn.Module,
    evaluate: Evaluate,
    tolerance: float,
    *,
    exclude: str | Iterable[str] = (),
    weights_only: bool = False,
    max_evaluations: int = 40,
) -> Pruned:
    """Zero all parameters below the largest threshold found that keeps the loss within tolerance.

    With J0 the loss now and the bound J0 * (1 + tolerance), bisection starts at T0, the mean over
    layers of the mean magnitude of their nonzero parameters: between T0 and the largest magnitude
    if J(T0) is below the bound, else between the smallest nonzero magnitude and T0. The middle
    becomes the lower end if its loss is within the bound, else the upper; until the losses at the
    ends differ by less than 5 % of the bound or the middle stops moving. The lower end, which met
    the bound, is taken: where that is the smallest magnitude, nothing is zeroed (LOBSTER, arXiv
    2011.09905, whose authors take the middle, which may miss the bound).

    What is zero then counts as pruned, see :func:`neq_kernels.pruning.keep_zeros`. A layer that is
    zero as a whole is not refused, as a branch that starts at zero is one, too; where no path is
    left, :func:`neq_kernels.pruning.shrink` says so.

    Args:
        model: its Linear, convolution and batch-norm parameters are pruned, biases included.
        evaluate: ``evaluate(model)``, the loss on validation data, lower is better. The model is in
            eval mode and gradients are off; its buffers and the random state are as before after
            each call.
        tolerance: TWT, the share by which the loss may rise, 0.05 in the paper.
        exclude: name patterns (``fnmatch``) of layers to leave alone.
        weights_only: leave biases and batch norms alone.
        max_evaluations: at most so many calls of ``evaluate``, from 3 on.

    Raises:
        TypeError: ``model`` is not a module, or ``evaluate`` does not return a number.
        ValueError: ``tolerance`` is negative or not a number, ``max_evaluations`` is below 3, a
            loss is NaN or negative, or there is nothing to prune.

    Whatever is raised, also by ``evaluate``: the model is as it was.
    """
    check_tolerance(tolerance)
    if max_evaluations < 3:
        raise ValueError(f"max_evaluations: expected 3 or more, got {max_evaluations!r}")
    layers = pruned_tensors(model, exclude, weights_only)
    apply_masks(model)
    largest, smallest, start = _magnitudes(layers)
    tensors = [p for own in layers for p in own]
    with restored_on_error(model, tensors) as originals:
        loss_at = _Losses(model, evaluate, tensors, originals)
        before = loss_at(0.0)
        if before < 0:
            raise ValueError(f"evaluate: expected a loss of at least 0, got {before}")
        threshold, loss = _bisect(
            loss_at, before, before * (1 + tolerance), (smallest, start, largest), max_evaluations
        )
        zero_below(tensors, originals, threshold)
        _declare(model, tensors)
    return Pruned(threshold, before, loss, loss_at.calls, share_zeroed(model), share_removed(model))


def prune_share(
    model: nn.Module,
    amount: float,
    *,
    exclude: str | Iterable[str] = (),
    weights_only: bool = False,
) -> Pruned:
    """Zero the share ``amount`` of the parameters that are smallest in magnitude over the whole
    network, those that are zero already included.

    Raises:
        TypeError, ValueError: as :func:`threshold_search`, or ``amount`` is not in [0, 1).
    """
    check_amount(amount)
    tensors = [p for own in pruned_tensors(model, exclude, weights_only) for p in own]
    apply_masks(model)
    magnitudes = torch.cat([p.detach().abs().flatten().float().cpu() for p in tensors])
    zeroed = math.floor(amount * magnitudes.numel())
    # The smallest that stays: whatever equals it stays, too.
    threshold = float(magnitudes.kthvalue(zeroed + 1).values)
    with restored_on_error(model, tensors) as originals:
        zero_below(tensors, originals, threshold)
        _declare(model, tensors)
    return Pruned(threshold, None, None, 0, share_zeroed(model), share_removed(model))


def check_tolerance(tolerance: float) -> None:
    """Raise ValueError unless it is a share by which a loss may rise."""
    if not tolerance >= 0 or math.isinf(tolerance):
        raise ValueError(f"tolerance: expected a share >= 0, 0.05 say, got {tolerance!r}")


def check_amount(amount: float) -> None:
    """Raise ValueError unless it is a share of parameters to prune."""
    if not 0 <= amount < 1:
        raise ValueError(f"amount: expected a share of the parameters in [0, 1), got {amount!r}")


def evaluated(model: nn.Module, evaluate: Evaluate) -> float:
    """The loss that ``evaluate`` gives, in eval mode and without a trace.

    Raises:
        TypeError: it is not a number.
        ValueError: it is NaN.
    """
    inner = unwrapped(model)
    with undisturbed(inner):
        loss = evaluate(model)
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise TypeError(f"evaluate: expected a single loss, got a tensor {tuple(loss.shape)}")
    try:
        loss = float(loss)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"evaluate: expected the loss as a number, got {type(loss).__name__}"
        ) from error
    if math.isnan(loss):
        raise ValueError("evaluate: expected a loss, got NaN; the model is as it was before")
    return loss


def pruned_tensors(
    model: nn.Module, exclude: str | Iterable[str], weights_only: bool
) -> list[list[nn.Parameter]]:
    """The parameters of each layer to prune; shared ones once."""
    seen: set[nn.Parameter] = set()
    layers = []
    for module in prunable(model, exclude).values():
        own = parameters(module)
        if weights_only:
            own = {} if isinstance(module, nn.modules.batchnorm._BatchNorm) else own
            own.pop("bias", None)
        layers.append([p for p in own.values() if p not in seen])
        seen.update(own.values())
    return [own for own in layers if own]


@contextmanager
def restored_on_error(model: nn.Module, tensors: list[nn.Parameter]) -> Iterator[list[Tensor]]:
    """Gives copies of ``tensors``; if the body raises, these and the masks are put back."""
    originals = [p.detach().clone() for p in tensors]
    masks = get_masks(model)
    try:
        yield originals
    except BaseException:
        with torch.no_grad():
            for parameter, original in zip(tensors, originals, strict=True):
                parameter.copy_(original)
        set_masks(model, masks)
        raise


@torch.no_grad()
def zero_below(tensors: list[nn.Parameter], originals: list[Tensor], threshold: float) -> None:
    """``originals`` into ``tensors``, with zeros where the magnitude is below ``threshold``."""
    for parameter, original in zip(tensors, originals, strict=True):
        # In fp64, as a threshold rounded to half precision is another one.
        small = original.abs().double() < threshold
        parameter.copy_(original.masked_fill(small, 0))


def _declare(model: nn.Module, tensors: list[nn.Parameter]) -> None:
    """Record the zeros of ``tensors`` as pruned, beside what was pruned elsewhere before."""
    own = {id(p) for p in tensors}
    found = {
        f"{layer}.{name}".lstrip("."): p != 0
        for layer, module in prunable(model).items()
        for name, p in parameters(module).items()
        if id(p) in own
    }
    set_masks(model, {**get_masks(model), **found})


class _Losses:
    """The loss at a threshold."""

    def __init__(
        self,
        model: nn.Module,
        evaluate: Evaluate,
        tensors: list[nn.Parameter],
        originals: list[Tensor],
    ) -> None:
        self.calls = 0
        self._model, self._evaluate = model, evaluate
        self._tensors, self._originals = tensors, originals

    def __call__(self, threshold: float) -> float:
        zero_below(self._tensors, self._originals, threshold)
        self.calls += 1
        return evaluated(self._model, self._evaluate)


def _bisect(
    loss_at: _Losses,
    before: float,
    bound: float,
    points: tuple[float, float, float],
    max_evaluations: int,
) -> tuple[float, float]:
    """The threshold that met the bound, and its loss."""
    smallest, start, largest = points
    middle = loss_at(start)
    if middle < bound:
        low, at_low, high = start, middle, largest
        at_high = loss_at(high)
    else:
        # Below the smallest magnitude there is nothing but zeros: the loss is the one of before.
        low, at_low, high, at_high = smallest, before, start, middle
    while abs(at_low - at_high) >= 0.05 * bound and loss_at.calls < max_evaluations:
        center = (low + high) / 2
        if not low < center < high:
            break
        at_center = loss_at(center)
        if at_center <= bound:
            low, at_low = center, at_center
        else:
            high, at_high = center, at_center
    return low, at_low


@torch.no_grad()
def _magnitudes(layers: list[list[nn.Parameter]]) -> tuple[float, float, float]:
    """(largest magnitude, smallest nonzero one, mean over layers of the mean nonzero one).

    Raises:
        ValueError: all are zero, or one is not finite.
    """
    means, largest, smallest = [], 0.0, math.inf
    for own in layers:
        magnitudes = torch.cat([p.abs().flatten().double().cpu() for p in own])
        magnitudes = magnitudes[magnitudes != 0]
        if not magnitudes.isfinite().all():
            raise ValueError("model: expected finite parameters, got NaN or inf")
        if magnitudes.numel():
            means.append(float(magnitudes.mean()))
            largest = max(largest, float(magnitudes.max()))
            smallest = min(smallest, float(magnitudes.min()))
    if not means:
        raise ValueError("model: expected parameters to prune, got zeros only: the net is cut")
    return largest, smallest, sum(means) / len(means)
