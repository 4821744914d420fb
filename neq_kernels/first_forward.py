"""What only a forward can tell: FLOPs, and weights that are used behind their layer's back.

``nn.MultiheadAttention`` or torchvision's Swin hand the weight of a Linear to a function instead of
calling the Linear; a sparse class there would never run. The first eager forward after convert is
watched: such layers are given their torch class back, and :func:`neq_kernels.report` names them.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

from neq_kernels.layer import NEqLayer

_PRODUCTS = frozenset([
    "linear", "bilinear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "tensordot",
    "conv1d", "conv2d", "conv3d", "convolution", "multi_head_attention_forward",
    "__matmul__", "__rmatmul__",
])  # fmt: skip


def forward_flops(model: nn.Module) -> tuple[dict[str, int], int] | None:
    """FLOPs of the watched forward: of each converted layer by name, and of the whole model.

    Matrix products, convolutions and attention count, as in ``torch.utils.flop_counter``. None
    before the first eager forward.
    """
    counted = model.__dict__.get("_forward_flops")
    if counted is None:
        return None
    layers, total = counted
    converted = {name for name, m in model.named_modules() if isinstance(m, NEqLayer)}
    return {name: flops for name, flops in layers.items() if name in converted}, total


class _Products(TorchFunctionMode):
    """Notes which layers' weights meet a product while their layer is not running."""

    def __init__(self, layers: list[NEqLayer]) -> None:
        super().__init__()
        self.owner = {id(m.weight): m for m in layers}
        self.running: list[nn.Module] = []
        self.hidden: list[NEqLayer] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _PRODUCTS:
            for leaf in tree_leaves((args, kwargs)):
                layer = self.owner.get(id(leaf)) if isinstance(leaf, Tensor) else None
                if layer is not None and layer not in self.running + self.hidden:
                    self.hidden.append(layer)
        return func(*args, **kwargs)


class _Flops(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=output)
        return output


class _Watch:
    """One watched forward: both modes, and the hooks that tell which layer is running."""

    def __init__(self, model: nn.Module) -> None:
        layers = [m for m in model.modules() if isinstance(m, NEqLayer)]
        self.products, self.flops = _Products(layers), _Flops()
        self.before: list[int] = []
        self.layer_flops = dict.fromkeys(layers, 0)
        self.handles: list[RemovableHandle] = []
        for layer in layers:
            if layer is model:
                continue  # Its hooks are being called already: one registered now is too late.
            self.handles += (
                layer.register_forward_pre_hook(self.enter_layer),
                layer.register_forward_hook(self.leave_layer, always_call=True),
            )
        self.stack = ExitStack()
        self.stack.enter_context(self.products)
        self.stack.enter_context(self.flops)

    def close(self) -> None:
        self.stack.close()
        for handle in self.handles:
            handle.remove()

    def enter_layer(self, layer: nn.Module, inputs: Any) -> None:
        self.products.running.append(layer)
        self.before.append(self.flops.total)

    def leave_layer(self, layer: NEqLayer, inputs: Any, output: Any) -> None:
        self.products.running.pop()
        self.layer_flops[layer] += self.flops.total - self.before.pop()


_watches: WeakKeyDictionary[nn.Module, _Watch] = WeakKeyDictionary()


def before_forward(model: nn.Module, inputs: Any) -> None:
    """Forward pre-hook of a converted model: watch the first eager forward.

    It stays when that is over: a model compiled before would be compiled anew without it.
    """
    if "_forward_flops" in model.__dict__:
        return
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if traced or torch._C._are_functorch_transforms_active() or model in _watches:
        return
    # Under these modes a compiled submodule would be compiled for a state that never returns.
    if any(m._compiled_call_impl is not None for m in model.modules()):
        return
    watched = _watches[model] = _Watch(model)
    if isinstance(model, NEqLayer):
        watched.enter_layer(model, inputs)


def after_forward(model: nn.Module, inputs: Any, output: Any) -> None:
    """Forward hook of a converted model, called also when the forward raised."""
    if torch.compiler.is_compiling() or model not in _watches:
        return
    watched = _watches.pop(model)
    if isinstance(model, NEqLayer):
        watched.leave_layer(model, inputs, output)
    watched.close()
    if output is None:
        return
    names = {module: name for name, module in model.named_modules()}
    layer_flops = {names[layer]: flops for layer, flops in watched.layer_flops.items()}
    model.__dict__["_forward_flops"] = (layer_flops, watched.flops.total)
    for layer in watched.products.hidden:
        _give_back(model, layer)


def _give_back(model: nn.Module, layer: NEqLayer) -> None:
    name = next(name for name, m in model.named_modules() if m is layer)
    if not layer.active.is_full:
        warnings.warn(
            f"{name}: its weight is used without calling the layer, so none of its neurons can be "
            "frozen; all are active again (see neq_kernels.report)",
            stacklevel=2,
        )
    layer.unconvert()
    layer.__dict__["_skip_reason"] = "its weight is used without calling the layer"
