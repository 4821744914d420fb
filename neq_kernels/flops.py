"""neq.flops: what freezing saves, in three accountings that are often mistaken for one another.

paper     2 * MACs * (1 - frozen share), summed over layers; a norm counts 2 MACs per output element
          (NEq, arXiv 2207.09455, its tables). Weight and input gradients are not told apart.
wgrad     the weight gradients alone: 2 * MACs * (1 - frozen share).
backward  wgrad, and the input gradients, which freezing does not shorten except below everything
          that still trains; and whatever else the backward multiplies, such as attention. This is
          the one that time can follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from neq_kernels.active import ActiveSet
from neq_kernels.backward_graph import BackwardGraph
from neq_kernels.convert import all_active, converted_layers, get_active
from neq_kernels.equilibrium.undisturbed import undisturbed, unwrapped
from neq_kernels.example import outputs_with_graph
from neq_kernels.example import samples as samples_of
from neq_kernels.layer import NEqLayer

NORMS = (
    nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
)  # fmt: skip


@dataclass(frozen=True)
class Count:
    """FLOPs per sample: with all neurons active, and with the sets given (mean over a history)."""

    dense: float
    sparse: float

    @property
    def share(self) -> float:
        """``sparse`` as a share of ``dense``; 1 where there is nothing to count."""
        return self.sparse / self.dense if self.dense else 1.0


@dataclass(frozen=True)
class Flops:
    """What :func:`flops` counted, all per sample and step. ``str()`` gives a table.

    Attributes:
        paper, wgrad, backward: the accountings of the module's docstring.
        forward: FLOPs of the forward's products.
        neurons: rows of all Linear and convolution weights and channels of all norms.
        frozen_share: frozen ones among them, 0 to 1 (mean over a history).
        probe: FLOPs of one measurement of equilibrium, as a whole: it counts nowhere else.
    """

    paper: Count
    wgrad: Count
    backward: Count
    forward: float
    neurons: int
    frozen_share: float
    probe: float

    def __str__(self) -> str:
        lines = [f"{'FLOPs per sample':20} {'all active':>12} {'now':>12} {'share':>8}"]
        for name in ("paper", "wgrad", "backward"):
            count = getattr(self, name)
            numbers = f"{_short(count.dense):>12} {_short(count.sparse):>12} {count.share:>8.2%}"
            lines.append(f"{name:20} {numbers}")
        lines.append(f"{'forward':20} {_short(self.forward):>12}")
        lines.append(f"frozen: {self.frozen_share:.4%} of {self.neurons} neurons")
        if self.probe:
            lines.append(f"one measurement of the probe: {_short(self.probe)}")
        return "\n".join(lines)


def flops(
    model: nn.Module,
    example_input: Any,
    history: Sequence[Mapping[str, ActiveSet]] | None = None,
    *,
    probe_samples: int = 0,
) -> Flops:
    """Count the FLOPs of a training step of ``model``: dense, and as its neurons are frozen.

    Runs one forward and one backward on the side, in eval mode with all neurons active, and leaves
    the model, its gradients and the random state as they were.

    Args:
        model: converted or not; may be compiled or wrapped in DistributedDataParallel.
        example_input: what the model takes: a tensor, a tuple of arguments or a mapping of
            keywords. FLOPs are divided by the first tensor's first size, the samples.
        history: sets by layer name (as :func:`neq_kernels.get_active` gives them), one mapping per
            epoch; layers a mapping leaves out count as all active. None: the sets of now.
        probe_samples: samples in the probe, if its cost is to be counted.

    Raises:
        TypeError: ``example_input`` holds no tensor with a sample dimension.
        ValueError: a set of ``history`` is of an unknown layer or another size, or there is none.
        RuntimeError: nothing that ``model`` returns depends on its parameters.
    """
    model = unwrapped(model)
    samples = samples_of(example_input)
    counted = _Counted(model, example_input)
    epochs = [get_active(model)] if history is None else list(history)
    if not epochs:
        raise ValueError("history: expected the sets of at least one epoch, got none")
    for sets in epochs:
        counted.check(sets)
    shares = [counted.shares(sets) for sets in epochs]
    now = [counted.backward(share) for share in shares]
    dense = counted.backward({})
    neurons = sum(layer.neurons for layer in counted.layers.values())

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values) / samples

    paper = [counted.paper(share) for share in shares]
    frozen = [counted.frozen(sets) for sets in epochs]
    return Flops(
        paper=Count(counted.paper({}) / samples, mean(paper)),
        wgrad=Count(dense[0] / samples, mean([wgrad for wgrad, _ in now])),
        backward=Count(sum(dense) / samples, mean([sum(both) for both in now])),
        forward=counted.forward / samples,
        neurons=neurons,
        frozen_share=sum(frozen) / len(frozen) / max(neurons, 1),
        probe=counted.forward / samples * probe_samples,
    )


@dataclass
class _Layer:
    """One layer: how it multiplies, and its calls as (MACs, input's node, output's node)."""

    neurons: int
    norm: bool
    trains: bool
    propagate: str
    calls: list[tuple[int, int | None, int | None]]

    @property
    def macs(self) -> int:
        return sum(macs for macs, _, _ in self.calls)


class _Counted:
    """A model's layers, the graph of its backward, and the FLOPs of neither's layers."""

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        self.layers = {
            name: _Layer(
                neurons=_neurons(module),
                norm=isinstance(module, NORMS),
                trains=bool(module.weight.requires_grad),
                propagate=getattr(module, "propagate", "all"),
                calls=[],
            )
            for name, module in model.named_modules()
            if _neurons(module)
        }
        self._converted = {name: layer.size for name, layer in converted_layers(model).items()}
        self._graph = BackwardGraph()
        self._owners: dict[int, str] = {}
        with all_active(model):
            self._run(model, example_input)
        self._others = self._total - sum(self._of_layers({})[:2])

    def _run(self, model: nn.Module, example_input: Any) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        with ExitStack() as stack:
            stack.enter_context(undisturbed(model))
            stack.enter_context(torch.enable_grad())
            for name, module in model.named_modules():
                if name in self.layers:
                    for parameter in module.parameters(recurse=False):
                        self._owners[id(parameter)] = name
                    hook = self._noting(name, module)
                    stack.enter_context(module.register_forward_hook(hook, prepend=True))
            with FlopCounterMode(display=False) as forward:
                leaves = outputs_with_graph(model, example_input)
            self.forward = forward.get_total_flops()
            self._graph.outputs = [self._graph.node(leaf.grad_fn) for leaf in leaves]
            with FlopCounterMode(display=False) as backward:
                torch.autograd.grad(
                    leaves, parameters, [torch.ones_like(leaf) for leaf in leaves],
                    allow_unused=True,
                )  # fmt: skip
            self._total = backward.get_total_flops()

    def _noting(self, name: str, module: nn.Module) -> Any:
        def note(_: nn.Module, inputs: Any, output: Tensor) -> None:
            tensor = next((leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)), None)
            before = None if tensor is None else self._graph.node(tensor.grad_fn)
            after = self._graph.node(output.grad_fn)
            self.layers[name].calls.append((_macs(module, tensor, output), before, after))

        return note

    def check(self, sets: Mapping[str, ActiveSet]) -> None:
        """Raise ValueError for a set that fits no converted layer."""
        for name, active in sets.items():
            if name not in self._converted or active.size != self._converted[name]:
                raise ValueError(
                    f"history: expected sets of the model's converted layers, got {name!r} with "
                    f"{active.size} neurons; there {self._converted.get(name, 'is no such layer')}"
                )

    def shares(self, sets: Mapping[str, ActiveSet]) -> dict[str, float]:
        """Active share by layer."""
        return {name: active.count / active.size for name, active in sets.items() if active.size}

    def frozen(self, sets: Mapping[str, ActiveSet]) -> int:
        return sum(active.size - active.count for active in sets.values())

    def paper(self, shares: Mapping[str, float]) -> float:
        return sum(2 * layer.macs * shares.get(name, 1.0) for name, layer in self.layers.items())

    def backward(self, shares: Mapping[str, float]) -> tuple[float, float]:
        """FLOPs of the weight gradients, and of all else in the backward."""
        wgrad, dgrad, any_left = self._of_layers(shares)
        # What is no layer's has no neurons to freeze, but rests where no gradient is left.
        return wgrad, dgrad + self._others * any_left

    def _of_layers(self, shares: Mapping[str, float]) -> tuple[float, float, bool]:
        frozen = {name for name, share in shares.items() if share == 0}
        live = self._graph.live(lambda owner: self._owners.get(owner) not in frozen)
        cut = {
            after
            for name in frozen
            if self.layers[name].propagate == "active"
            for _, _, after in self.layers[name].calls
        }
        reached = self._graph.reached(cut)
        wgrad = dgrad = 0.0
        for name, layer in self.layers.items():
            share = shares.get(name, 1.0)
            for macs, before, after in () if layer.norm else layer.calls:
                if after is None or (after not in reached and after not in cut):
                    continue
                wgrad += 2 * macs * share if layer.trains else 0
                through = share if layer.propagate == "active" else 1.0
                dgrad += 2 * macs * through if before is not None and before in live else 0
        return wgrad, dgrad, bool(live)


def _neurons(module: nn.Module) -> int:
    if isinstance(module, NEqLayer):
        return module.size
    weight = module._parameters.get("weight")
    products = (nn.Linear, nn.modules.conv._ConvNd)
    if weight is None or not isinstance(module, (*products, *NORMS)):
        return 0
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return module.out_channels
    return int(weight.shape[0])


def _macs(module: Any, given: Tensor | None, output: Tensor) -> int:
    if isinstance(module, NORMS):
        return 2 * output.numel()
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        assert given is not None
        return given.numel() * int(module.weight[0].numel())
    return output.numel() * (int(module.weight.numel()) // _neurons(module))


def _short(count: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:.4g}"
