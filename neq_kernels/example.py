"""One batch, as a user hands it over to have a model run on the side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def samples(example_input: Any) -> int:
    """The first tensor's first size.

    Raises:
        TypeError: there is no tensor, or it has no samples.
    """
    tensor = next((leaf for leaf in tree_leaves(example_input) if isinstance(leaf, Tensor)), None)
    if tensor is None or tensor.dim() == 0 or tensor.shape[0] == 0:
        got = type(example_input).__name__ if tensor is None else f"shape {tuple(tensor.shape)}"
        raise TypeError(
            "example_input: expected a tensor [samples, ...], or arguments that hold one, "
            f"got {got}"
        )
    return int(tensor.shape[0])


def outputs_with_graph(model: nn.Module, example_input: Any) -> list[Tensor]:
    """The tensors that ``model`` returns and that depend on its parameters. A tuple or list is
    taken as arguments, a mapping as keywords, anything else as the only argument.

    Raises:
        RuntimeError: there is none.
    """
    if isinstance(example_input, Mapping):
        output = model(**example_input)
    elif isinstance(example_input, (tuple, list)):
        output = model(*example_input)
    else:
        output = model(example_input)
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    leaves = [leaf for leaf in leaves if leaf.grad_fn is not None]
    if not leaves:
        raise RuntimeError(
            "model: expected an output that depends on parameters that require a gradient, got "
            "none; unfreeze some, or return the tensors from forward()"
        )
    return leaves
