"""SeReNe: neurons the network's outputs do not feel shrink (arXiv 2102.03773)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from neq_kernels.equilibrium.undisturbed import unwrapped
from neq_kernels.layer import NEqLayer, distributed
from neq_kernels.optim.rows import RowMap

from .activation import Graph, steepness
from .layers import channel_axis, connects, neurons, parameters, prunable, spread
from .lobster import check_strength
from .masks import apply_masks
from .sensitivity import full, lower_bound

Variant = Literal["full", "lower_bound", "local"]


@dataclass(frozen=True)
class _Call:
    """One call of a layer: where its output is in the graph, and of what shape."""

    name: str
    edge: GradientEdge
    shape: torch.Size
    dtype: torch.dtype
    axis: int


class SeReNe:
    """Sensitivity-based regularisation of neurons: call ``step()`` after the optimizer's.

        W[i] -= strength * W[i] * max(0, 1 - S[i])

    for the incoming weights of neuron i of every Linear and convolution layer, no bias (SeReNe,
    IEEE TNNLS 2021, arXiv 2102.03773). With the potentials p of neuron i, the layer's output before
    norm and activation, and the network's outputs y_1 ... y_C, the sensitivity is the mean over
    samples and positions of

        "full":         S[i] = 1/C * sum_k |dy_k / dp|    C backward passes, batched
        "lower_bound":  S[i] = 1/C * |sum_k dy_k / dp|    one backward pass down to the potentials
        "local":        S[i] = |d activation(p) / dp|     no backward pass; ReLU: share of p > 0

    It is measured by hooks whenever the model runs in training mode with gradients on, before the
    loss's own backward, over all forwards since the last ``step()``. For "local" the activation is
    found in the autograd graph: the first one behind the layer, through norms, sums and pooling
    that keep the channels; its own input is then the potential. Layers that end in the model's
    output have S = 1 there: they do not shrink.

    Any optimizer, gradient accumulation and ``GradScaler``. Pruned parameters stay zero, neurons
    frozen by NEq bit-identical, and layers that the outputs do not depend on as they are. Several
    processes average their sensitivities. The strength is not scaled by the learning rate. Follow
    it with :class:`neq_kernels.pruning.Gradual`. As context manager or by ``close()``, the hooks
    go.

    Args:
        model: any model with such layers, also converted or wrapped in DDP; not compiled.
        strength: lambda, 1e-4 in the paper.
        variant: which sensitivity.
        exclude: name patterns (``fnmatch``) of layers to leave alone.
        outputs: ``outputs(what the model returns) -> [N, C]``, for models that return something
            else; "local" does not need it.
        memory: bytes that the batched gradients of "full" may take; bounds how many classes go
            through one pass.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``strength`` is not in [0, 1), ``variant`` is unknown, ``memory`` is not
            positive, a pattern matches nothing, or there is no layer.
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float,
        variant: Variant = "lower_bound",
        *,
        exclude: str | Iterable[str] = (),
        outputs: Callable[[Any], Tensor] | None = None,
        memory: int = 256 << 20,
    ) -> None:
        self.strength = check_strength(strength)
        if variant not in get_args(Variant):
            expected = ", ".join(repr(name) for name in get_args(Variant))
            raise ValueError(f"variant: expected one of {expected}, got {variant!r}")
        if memory <= 0:
            raise ValueError(f"memory: expected a number of bytes, got {memory!r}")
        found = prunable(model, exclude)
        self._layers = {name: module for name, module in found.items() if connects(module)}
        if not self._layers:
            raise ValueError("model: expected a Linear or convolution layer left, got only norms")
        self.model = unwrapped(model)
        self.variant = variant
        self.memory = memory
        self._outputs = outputs
        self._rows = RowMap(self.model)
        self._calls: list[_Call] | None = None
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._handles = [
            self.model.register_forward_pre_hook(self._begin),
            # Behind the layer's own hook where the model is the layer.
            *(
                m.register_forward_hook(self._note(name), prepend=True)
                for name, m in self._layers.items()
            ),
            self.model.register_forward_hook(self._measure),
        ]

    def sensitivities(self) -> dict[str, Tensor]:
        """S of each layer that was measured since the last step, fp32 ``[neurons]``, by name."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    @torch.no_grad()
    def step(self) -> None:
        """Shrink the neurons, by what was measured since the last step.

        Raises:
            RuntimeError: nothing was measured.
        """
        rows = self._rows.look_up()
        if not self._sums and len(rows) == 0:
            raise RuntimeError(
                "sensitivity: expected a forward of the model in training mode with gradients on "
                "since the last step(), got none; call step() once per optimizer step, and not "
                "after close()"
            )
        if distributed():
            self._average()
        weights, factors = [], []
        for name, sensitivity in self.sensitivities().items():
            weight = parameters(self._layers[name])["weight"]
            # Where an overflow made NaN, nothing shrinks.
            shrink = (1 - sensitivity).clamp_(min=0).nan_to_num_(nan=0.0)
            if weight in rows:
                shrink[rows[weight].frozen.index(shrink.device)] = 0
            factor = (1 - self.strength * shrink).to(weight.device, weight.dtype)
            weights.append(weight.detach())
            factors.append(spread(self._layers[name], factor))
        if weights:
            torch._foreach_mul_(weights, factors)
        self._sums.clear()
        self._counts.clear()
        apply_masks(self.model)

    def close(self) -> None:
        """Remove the hooks. Harmless when repeated."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._sums.clear()
        self._counts.clear()

    def __enter__(self) -> SeReNe:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        kind = type(self.model).__name__
        return f"SeReNe({kind}, strength={self.strength:g}, variant={self.variant!r})"

    def _begin(self, model: nn.Module, arguments: Any) -> None:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "model: expected an eager forward, got a compiled one, whose inner gradients "
                "cannot be had; use LOBSTER, or leave torch.compile out"
            )
        # A checkpoint's recomputation runs inside the backward, and was measured before.
        measuring = model.training and torch.is_grad_enabled() and not _in_backward()
        self._calls = [] if measuring else None

    def _note(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, arguments: Any, output: Tensor) -> None:
            if self._calls is None or not output.requires_grad:
                return
            if isinstance(module, NEqLayer) and module.active.is_empty:
                return
            axis = channel_axis(module)
            if axis == 1 and output.dim() == parameters(module)["weight"].dim() - 1:
                axis = 0  # one image without its batch
            # The edge, not the tensor: an in-place activation would put itself in its place.
            edge = get_gradient_edge(output)
            self._calls.append(_Call(name, edge, output.shape, output.dtype, axis))

        return note

    def _measure(self, model: nn.Module, arguments: Any, output: Any) -> None:
        calls, self._calls = self._calls, None
        if not calls:
            return
        if self.variant == "local":
            self._measure_activations(calls, output)
        else:
            self._measure_gradients(calls, self._classes(output))

    def _measure_gradients(self, calls: list[_Call], outputs: Tensor) -> None:
        half = any(call.dtype == torch.float16 for call in calls)
        edges = [call.edge for call in calls]
        if self.variant == "lower_bound":
            found = lower_bound(outputs, edges, half)
        else:
            found = full(outputs, edges, half, self._chunk(calls, outputs.shape[1]))
        for call, gradient in zip(calls, found, strict=True):
            if gradient is not None:
                axes = [d for d in range(gradient.dim()) if d != call.axis % gradient.dim()]
                dtype = torch.promote_types(gradient.dtype, torch.float32)
                total = gradient.sum(axes, dtype=dtype)
                self._add(call.name, total, gradient.numel() // max(1, len(total)))

    @torch.no_grad()
    def _measure_activations(self, calls: list[_Call], output: Any) -> None:
        leaves = [t for t in torch.utils._pytree.tree_leaves(output) if isinstance(t, Tensor)]
        graph = Graph(leaves)
        known: dict[Any, tuple[Tensor, int]] = {}
        for call in calls:
            try:
                node = graph.activation(call.edge.node, call.shape, call.axis)
            except LookupError as error:
                raise RuntimeError(
                    f"variant: expected an activation behind layer {call.name!r} for 'local', got "
                    f"{error} first, which mixes or moves channels; exclude={[call.name]!r}, or "
                    "take variant='lower_bound'"
                ) from None
            if node is None:
                size, like = neurons(self._layers[call.name]), leaves[0]
                dtype = torch.promote_types(call.dtype, torch.float32)
                self._add(call.name, torch.ones(size, dtype=dtype, device=like.device), 1)
                continue
            if node not in known:
                known[node] = steepness(node, call.axis)
            self._add(call.name, *known[node])

    def _add(self, name: str, total: Tensor, count: int) -> None:
        before = self._sums.get(name)
        self._sums[name] = total if before is None else before + total
        self._counts[name] = self._counts.get(name, 0) + count

    def _classes(self, output: Any) -> Tensor:
        outputs = output if self._outputs is None else self._outputs(output)
        if not isinstance(outputs, Tensor) or outputs.dim() != 2 or not outputs.requires_grad:
            got = type(outputs).__name__
            if isinstance(outputs, Tensor):
                got = f"{tuple(outputs.shape)}, requires_grad={outputs.requires_grad}"
            raise RuntimeError(
                f"outputs: expected a differentiable tensor [N, C] from the model, got {got}; "
                "pass outputs=, a function that makes one of what the model returns"
            )
        return outputs

    def _chunk(self, calls: list[_Call], classes: int) -> int:
        """How many classes fit into one batched pass. The sparse layers' own backward is not made
        for batches of gradients: with neurons frozen, classes go one by one."""
        if any(isinstance(m, NEqLayer) and not m.active.is_full for m in self.model.modules()):
            return 1
        per_class = sum(call.shape.numel() * call.dtype.itemsize for call in calls)
        return max(1, min(classes, self.memory // max(1, per_class)))

    def _average(self) -> None:
        """The same sums on all processes, so that replicas stay equal."""
        for name in sorted(self._sums):
            count = self._sums[name].new_tensor([float(self._counts[name])])
            both = torch.cat([self._sums[name], count])
            torch.distributed.all_reduce(both)
            self._sums[name] = both[:-1] / both[-1]
            self._counts[name] = 1


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
