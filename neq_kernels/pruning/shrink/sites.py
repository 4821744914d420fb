"""Where channels meet weights: what each such place needs, and what it can do without."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from neq_kernels.pruning.shrink.axes import Axes, Axis
from neq_kernels.pruning.shrink.hooks import CONSTANT_INPUTS, ConstantInputs, is_convolution
from neq_kernels.pruning.shrink.known import Knowledge
from neq_kernels.pruning.shrink.known_layers import BATCH_NORMS, taps
from neq_kernels.pruning.shrink.trace import Call, Graph, Leaf, Value


@dataclass(frozen=True)
class Fold:
    """Where constants of removed inputs go: onto a bias, off a norm's running mean (the same
    thing, for a convolution without bias), or into a bias that the module gets."""

    kind: Literal["bias", "mean", "new"]
    leaf: Leaf | None
    module: nn.Module | None = None


@dataclass(frozen=True)
class Border:
    """A convolution to which :class:`neq_kernels.pruning.shrink.hooks.ConstantInputs` can be added.
    ``present``: the buffer, where it has been."""

    module: nn.Module
    hook: ConstantInputs
    present: Leaf | None


@dataclass(eq=False)
class Site:
    """A convolution or a product with a weight.

    ``nonzero``, ``sums`` ``[groups, outputs, inputs]``: of its taps. ``mask``, ``framed``,
    ``value`` ``[channels]``: which input channels are known to be the same everywhere, or but for a
    border of zeros, and what they are. ``even``: every output sees each input channel through all
    taps, so that a constant input is a constant in the output. ``alone``: nothing else uses the
    weight, so that it may change. ``border``: the hook that can stand for constants at a border.
    """

    call: Call
    weight: Leaf
    inputs_first: bool
    groups: int
    outputs: Axis
    inputs: Axis
    nonzero: Tensor
    sums: Tensor
    mask: Tensor
    framed: Tensor
    value: Tensor
    even: bool
    fold: Fold | None
    alone: bool
    border: Border | None = None

    @property
    def name(self) -> str:
        return self.weight.name.rpartition(".")[0] or self.weight.name

    @property
    def zero_rows(self) -> Tensor:
        """``[outputs]``: neurons with sum |w| = 0."""
        return ~self.nonzero.any(2).flatten()

    @property
    def folds(self) -> bool:
        """Whether constants go into a bias."""
        return self.even and self.fold is not None

    @property
    def is_layer(self) -> bool:
        """Whether it is one of the model's, not of the constants removed before."""
        return self.weight.owners[0][1] != CONSTANT_INPUTS

    @property
    def free(self) -> Tensor:
        """``[channels]``: known, and zero or to be had without the channel."""
        return self.mask & ((self.value == 0) | self.folds | (self.border is not None))

    @property
    def carried(self) -> Tensor:
        """``[channels]``: proportional to one another, if not foldable: one stands for all."""
        if self.groups > 1 or not self.alone:
            return torch.zeros_like(self.mask)
        return (self.mask | self.framed) & (self.value != 0) & ~self.free


class Uses:
    """Who uses what in a graph."""

    def __init__(self, graph: Graph) -> None:
        self.consumers: dict[Value, list[Call]] = {}
        self.leaves: Counter[Leaf] = Counter()
        self.values: dict[int, Value] = {id(v.leaf.tensor): v for v in graph.leaves if v.leaf}
        self.outputs = set(graph.outputs)
        for call in graph.calls:
            for value in call.inputs:
                self.consumers.setdefault(value, []).append(call)
                if value.leaf is not None:
                    self.leaves[value.leaf] += 1

    def alone(self, leaf: Leaf | None) -> bool:
        """Whether one call of one module uses it."""
        return leaf is not None and self.leaves[leaf] == 1 and len(leaf.owners) == 1

    def norm_behind(self, value: Value) -> Leaf | None:
        """The running mean of the batch norm that alone reads ``value``."""
        calls = self.consumers.get(value, [])
        if len(calls) != 1 or value in self.outputs or calls[0].op not in BATCH_NORMS:
            return None
        if calls[0].args.get("training", False) or calls[0]["running_mean"] is None:
            return None
        leaf: Leaf | None = calls[0]["running_mean"].leaf
        return leaf if self.alone(leaf) else None


def find(
    graph: Graph, understood: list[Call], knowledge: Knowledge, axes: Axes, hooks: bool
) -> list[Site]:
    """The sites among the calls ``understood``, in order; ``hooks``: whether they may be used."""
    uses = Uses(graph)
    found = []
    for call in understood:
        if call.op == "convolution" and call["weight"].leaf is not None:
            if call["groups"] == 1 or not call["transposed"]:
                found.append(_convolution(call, uses, knowledge, axes, hooks))
        elif call.op in ("mm", "addmm") and (call["mat2"].leaf or call["mat2"].transposed):
            found.append(_product(call, uses, knowledge, axes))
    return found


def _convolution(call: Call, uses: Uses, knowledge: Knowledge, axes: Axes, hooks: bool) -> Site:
    x, weight = call["input"], call["weight"]
    known = knowledge.of(x).along(1, x.shape[1])
    nonzero, sums = taps(knowledge.of(weight).value, call["groups"], call["transposed"])
    first, second = axes[weight][:2]
    inputs_first = bool(call["transposed"])
    if call["groups"] > 1 and not uses.alone(weight.leaf):
        for axis in (first, axes[x][1]):
            axes.pin(axis, f"{weight.leaf.name} is used twice, in groups")
    return Site(
        call, weight.leaf, inputs_first, call["groups"],
        outputs=second if inputs_first else first, inputs=axes[x][1],
        nonzero=nonzero, sums=sums, mask=known[0], framed=known[1], value=known[2].double(),
        even=not inputs_first and not any(call["padding"]), fold=_fold(call, weight.leaf, uses),
        alone=uses.alone(weight.leaf), border=_border(call, weight.leaf, uses) if hooks else None,
    )  # fmt: skip


def _border(call: Call, weight: Leaf, uses: Uses) -> Border | None:
    """Only of a layer whose forward is this convolution alone, of the layer's own input."""
    module, attribute, name = weight.owners[0]
    if not uses.alone(weight) or not is_convolution(module) or call["groups"] > 1:
        return None
    inside = attribute == "weight" and call.module == name.rpartition(".")[0]
    spans = [d * (k - 1) for d, k in zip(call["dilation"], call["weight"].shape[2:], strict=True)]
    # padding="same" pads unevenly before it, if it has to.
    given = module.padding != "same" or all(n % 2 == 0 for n in spans)
    if not inside or module.padding_mode != "zeros" or not given:
        return None
    hook = ConstantInputs(*(tuple(call[n]) for n in ("stride", "padding", "dilation")))
    present = uses.values.get(id(module._buffers.get(CONSTANT_INPUTS)))
    return Border(module, hook, present.leaf if present is not None else None)


def _product(call: Call, uses: Uses, knowledge: Knowledge, axes: Axes) -> Site:
    x = call["mat1" if call.op == "addmm" else "self"]
    weight = call["mat2"]
    inputs_first = weight.transposed is None
    leaf = weight.leaf if inputs_first else weight.transposed
    known = knowledge.of(x).along(-1, x.shape[-1])
    nonzero, sums = taps(knowledge.of(weight).value.t(), 1, False)
    return Site(
        call, leaf, inputs_first, 1,
        outputs=axes[weight][1], inputs=axes[x][-1],
        nonzero=nonzero, sums=sums, mask=known[0], framed=known[1], value=known[2].double(),
        even=True, fold=_fold(call, leaf, uses), alone=uses.alone(leaf),
    )  # fmt: skip


def _fold(call: Call, weight: Leaf, uses: Uses) -> Fold | None:
    """Where what a removed constant gave to the output can be added."""
    # Through t(), a matrix is used by one more call than by the product.
    if not uses.alone(weight):
        return None
    bias = (
        call["bias"] if call.op == "convolution" else call["self"] if call.op == "addmm" else None
    )
    if bias is not None:
        return Fold("bias", bias.leaf) if uses.alone(bias.leaf) else None
    module, attribute, name = weight.owners[0]
    if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) or attribute != "weight":
        return None
    if module.bias is not None:
        value = uses.values.get(id(module.bias))
        leaf = value.leaf if value is not None else None
        return Fold("bias", leaf) if uses.alone(leaf) else None
    if mean := uses.norm_behind(call.outputs[0]):
        return Fold("mean", mean)
    # Only the module's own forward adds a bias that it had not had before.
    inside = call.module == name.rpartition(".")[0]
    return Fold("new", None, module) if inside else None
