"""What shrink did, and why it left the rest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LayerChange:
    """One layer.

    Attributes:
        name: of the module in the model.
        neurons, inputs: (before, after).
        zero: neurons whose weights were all zero.
        kept: of those, how many stayed, by reason.
    """

    name: str
    neurons: tuple[int, int]
    inputs: tuple[int, int]
    zero: int
    kept: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class ShrinkReport:
    """What :func:`neq_kernels.pruning.shrink` did; ``str()`` of it is a table.

    Attributes:
        layers: convolutions and linear layers, in the order of the forward.
        parameters: (before, after).
        error: largest difference of an output from before, relative to the largest output.
        opaque: modules left whole, and why.
        notes: what else is to be known.
        hooks: names of the modules that have got forward hooks, by what these do.
    """

    layers: list[LayerChange]
    parameters: tuple[int, int]
    error: float
    opaque: dict[str, str]
    notes: list[str]
    hooks: dict[str, list[str]] = field(default_factory=dict)

    @property
    def removed(self) -> int:
        """Number of neurons removed."""
        return sum(layer.neurons[0] - layer.neurons[1] for layer in self.layers)

    @property
    def kept(self) -> Counter[str]:
        """How many neurons with all-zero weights stayed, by reason."""
        return sum((layer.kept for layer in self.layers), Counter())

    def __str__(self) -> str:
        total = sum(layer.neurons[0] for layer in self.layers)
        zero = sum(layer.zero for layer in self.layers)
        before, after = self.parameters
        first = (
            f"{self.removed} of {total} neurons removed ({zero} had no weight but zero), "
            f"{before:,} -> {after:,} parameters, outputs within {self.error:.1e}"
        )
        lines = [first]
        if zero == 0:
            lines.append(
                "no neuron has all its weights zero: threshold or prune whole neurons first"
            )
        changed = [
            c for c in self.layers if c.neurons[0] != c.neurons[1] or c.inputs[0] != c.inputs[1]
        ]
        width = max((len(c.name) for c in changed), default=0)
        lines += [
            f"  {c.name:{width}}  neurons {_arrow(c.neurons):>14}  inputs {_arrow(c.inputs):>14}"
            for c in changed
        ]
        lines += [f"zero but kept, {n}: {reason}" for reason, n in self.kept.most_common()]
        lines += [f"left whole: {reason}" for reason in self.opaque.values()]
        lines += [
            f"hooks on {len(names)} layers, each {what}" for what, names in self.hooks.items()
        ]
        return "\n".join([*lines, *self.notes])


def _arrow(pair: tuple[int, int]) -> str:
    return f"{pair[0]} -> {pair[1]}" if pair[0] != pair[1] else str(pair[0])
