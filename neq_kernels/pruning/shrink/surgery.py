"""Cutting parameters and buffers down to the channels that stay; all of it can be undone.

The Parameters stay the same objects, so that optimizers, hooks and everybody's references follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neq_kernels.active import ActiveSet
from neq_kernels.layer import NEqLayer
from neq_kernels.pruning.shrink.additions import Addition
from neq_kernels.pruning.shrink.axes import Axes
from neq_kernels.pruning.shrink.plan import Plan
from neq_kernels.pruning.shrink.sites import Fold, Site
from neq_kernels.pruning.shrink.trace import Leaf, Value


@dataclass(frozen=True)
class Cut:
    """Which slices of a tensor of ``shape`` stay: per dimension the indices, or None for all. For a
    convolution in groups ``columns`` ``[rows kept, inputs kept]`` says which inputs of each row."""

    shape: tuple[int, ...]
    kept: tuple[Tensor | None, ...]
    columns: Tensor | None = None
    groups: int = 1

    def fits(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` can be cut alike: its dimensions are as long, or 1."""
        if tensor.dim() != len(self.shape):
            return tensor.numel() == 1
        if self.columns is not None and tuple(tensor.shape[:2]) != self.shape[:2]:
            return False
        return all(a in (b, 1) for a, b in zip(tensor.shape, self.shape, strict=True))

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor.dim() != len(self.shape) or all(k is None for k in self.kept):
            return tensor
        channels_last = tensor.dim() == 4 and (
            tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
        )
        if self.columns is not None:
            assert self.kept[0] is not None
            rows = self.kept[0].to(tensor.device).unsqueeze(1)
            tensor = tensor[rows, self.columns.to(tensor.device)]
        else:
            for dim, kept in enumerate(self.kept):
                if kept is not None and tensor.shape[dim] == self.shape[dim]:
                    tensor = tensor.index_select(dim, kept.to(tensor.device))
        form = torch.channels_last if channels_last else torch.contiguous_format
        return tensor.contiguous(memory_format=form)


def cuts(plan: Plan, axes: Axes, sites: list[Site], leaves: list[Value]) -> dict[Leaf, Cut]:
    """How each parameter and buffer that loses something is cut."""
    grouped = {site.weight: site for site in sites if site.groups > 1}
    found = {}
    for value in leaves:
        assert value.leaf is not None
        masks = [plan.kept(a, n) for a, n in zip(axes[value], value.shape, strict=True)]
        indices = tuple(None if m.all() else m.nonzero().flatten() for m in masks)
        if site := grouped.get(value.leaf):
            if cut := _grouped(plan, site, value.shape):
                found[value.leaf] = cut
        elif any(i is not None for i in indices):
            found[value.leaf] = Cut(value.shape, indices)
    return found


def _grouped(plan: Plan, site: Site, shape: tuple[int, ...]) -> Cut | None:
    groups, outputs, inputs = site.nonzero.shape
    rows = plan.kept(site.outputs, groups * outputs)
    columns = plan.kept(site.inputs, groups * inputs).reshape(groups, inputs)
    if rows.all() and columns.all():
        return None
    index = rows.nonzero().flatten()
    alive = columns.any(1)
    kept = columns[alive].nonzero()[:, 1].reshape(int(alive.sum()), -1)
    of_group = alive.cumsum(0) - 1
    per_row = kept[of_group[index // outputs]]
    rest = [None] * (len(shape) - 1)
    return Cut(shape, (index, *rest), per_row, int(alive.sum()))


class Operation:
    """The changes to a model, made by :meth:`do` and taken back by :meth:`undo`."""

    def __init__(self) -> None:
        self.new_biases: list[tuple[Leaf, nn.Parameter]] = []
        self._undo: list[Callable[[], Any]] = []

    @torch.no_grad()
    def do(
        self, plan: Plan, sites: list[Site], leaves: dict[Leaf, Cut], added: list[Addition]
    ) -> None:
        """Fold constants, then cut. Folding reads the plan: it is exact only together."""
        for site in sites:
            self._merge(site, plan)
            self._fold(site, plan)
        for leaf, cut in leaves.items():
            self._replace(leaf, cut(leaf.tensor.data), cut)
        for leaf, cut in leaves.items():
            for module, _, _ in leaf.owners:
                self._resize(module, leaf, cut)
        for addition in added:
            self._undo.append(addition.attach())

    def undo(self) -> None:
        """Everything as before."""
        for action in reversed(self._undo):
            action()
        self._undo.clear()

    def _removed(self, site: Site, plan: Plan) -> Tensor:
        return ~plan.kept(site.inputs, len(site.mask))

    def _merge(self, site: Site, plan: Plan) -> None:
        """Let one channel stand for the removed ones that are its multiples."""
        gone = site.carried & self._removed(site, plan) & plan.needed(site)
        carrier = plan.carrier(site)
        if carrier is None or not gone.any():
            return
        weight, dim = site.weight.tensor, 0 if site.inputs_first else 1
        taken = weight.double().index_select(dim, gone.nonzero().flatten().to(weight.device))
        ratio = (site.value[gone] / site.value[carrier]).to(weight.device)
        ratio = ratio.reshape([-1 if d == dim else 1 for d in range(weight.dim())])
        merged = weight.to(torch.float64, copy=True)
        merged.select(dim, carrier).add_((taken * ratio).sum(dim))
        self._replace(site.weight, merged.to(weight.dtype), None)

    def _fold(self, site: Site, plan: Plan) -> None:
        """Add to the bias what the removed constants gave."""
        gone = site.mask & self._removed(site, plan) & (site.value != 0)
        groups, _, inputs = site.sums.shape
        value = torch.where(gone, site.value, 0.0).reshape(groups, 1, inputs)
        delta = (site.sums * value).sum(2).flatten()
        if site.fold is None or not site.folds or not delta.any():
            return
        if site.fold.leaf is None:
            kept = plan.kept(site.outputs, len(delta))
            self._new_bias(site.fold, site.weight, delta[kept])
            return
        bias = site.fold.leaf.tensor
        delta = delta.to(bias.device) * (-1 if site.fold.kind == "mean" else 1)
        self._replace(site.fold.leaf, (bias.double() + delta).to(bias.dtype), None)

    def _new_bias(self, fold: Fold, weight: Leaf, delta: Tensor) -> None:
        assert fold.module is not None
        tensor, module, name = weight.tensor, fold.module, weight.name.rpartition(".")[0]
        bias = nn.Parameter(delta.to(tensor), requires_grad=tensor.requires_grad)
        module.register_parameter("bias", bias)
        self.new_biases.append((Leaf(bias, [(module, "bias", f"{name}.bias")]), bias))
        self._undo.append(lambda: module.register_parameter("bias", None))

    def _replace(self, leaf: Leaf, data: Tensor, cut: Cut | None) -> None:
        tensor = leaf.tensor
        before, gradient = tensor.data, tensor.grad

        def back() -> None:
            tensor.grad = None
            tensor.data = before
            tensor.grad = gradient

        self._undo.append(back)
        if cut is not None:
            tensor.grad = None
        tensor.data = data
        if cut is not None and gradient is not None:
            tensor.grad = cut(gradient)

    def _resize(self, module: nn.Module, leaf: Leaf, cut: Cut) -> None:
        """Let ``module`` say the sizes that its tensors have."""
        before = {name: module.__dict__[name] for name in _SIZES if name in module.__dict__}
        self._undo.append(lambda: module.__dict__.update(before))
        module.__dict__.update(_sizes(module, cut))
        if isinstance(module, NEqLayer) and leaf.tensor is module.weight:
            rows = cut.kept[module._neuron_dim("weight")]
            if rows is not None:
                chosen, kept = module.chosen, module.kept
                self._undo.append(lambda: module.resize(chosen, kept))
                module.resize(_rows(chosen, rows), None if kept is None else _rows(kept, rows))


def _rows(neurons: ActiveSet, rows: Tensor) -> ActiveSet:
    return ActiveSet.from_mask(neurons.mask()[rows])


_SIZES = (
    "in_features", "out_features", "in_channels", "out_channels", "groups", "num_features",
    "num_parameters", "embedding_dim", "nf", "nx",
)  # fmt: skip


def _sizes(module: nn.Module, cut: Cut) -> dict[str, int]:
    weight = getattr(module, "weight", None)
    sizes: dict[str, int] = {}
    if isinstance(module, nn.modules.conv._ConvNd):
        groups = cut.groups if cut.columns is not None else module.groups
        first, second = module.weight.shape[:2]
        if module.transposed:
            sizes = {"in_channels": first, "out_channels": second * groups}
        else:
            sizes = {"in_channels": second * groups, "out_channels": first}
        sizes["groups"] = groups
    elif isinstance(module, nn.Linear):
        sizes = {"in_features": module.weight.shape[1], "out_features": module.weight.shape[0]}
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        size = module.running_mean if weight is None else weight
        sizes = {"num_features": len(size)} if isinstance(size, Tensor) else {}
    elif isinstance(module, nn.PReLU):
        sizes = {"num_parameters": module.weight.numel()}
    elif isinstance(module, nn.Embedding):
        sizes = {"embedding_dim": module.weight.shape[1]}
    elif isinstance(weight, Tensor) and weight.dim() == 2 and hasattr(module, "nf"):
        sizes = {"nf": weight.shape[1], "nx": weight.shape[0]}  # transformers' Conv1D
    return {name: n for name, n in sizes.items() if name in module.__dict__}
