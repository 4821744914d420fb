"""What one forward pass computes: the operators it calls, one after the other.

Python itself runs the model, so that nothing is beyond it; a dispatch mode sees every operator that
reaches ATen. What Python decides from a tensor's *value* cannot be seen: such reads are recorded as
calls of their own, with the module in which they happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from neq_kernels.pruning.shrink.running import call, evaluating


@dataclass(eq=False)
class Leaf:
    """A parameter or buffer, and where it hangs: (module, attribute, qualified name)."""

    tensor: Tensor
    owners: list[tuple[nn.Module, str, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.owners[0][2]


@dataclass(eq=False)
class Value:
    """A tensor of the traced forward.

    ``leaf``: the parameter or buffer that it is. ``transposed``: the one that it is the transpose
    of. ``made``: its elements, where no input and no parameter had a say.
    """

    shape: tuple[int, ...]
    leaf: Leaf | None = None
    transposed: Leaf | None = None
    made: Tensor | None = None


@dataclass(eq=False)
class Call:
    """One operator call; tensors among ``args`` and ``outputs`` are :class:`Value`.

    ``op`` is the operator's name without namespace and without the underscore of those that work
    in place; ``where`` the names of the modules it happened in, the outermost first. ``function``
    is None where a tensor's value left the graph, or where views and writes overlap.
    """

    op: str
    function: Any
    args: dict[str, Any]
    outputs: list[Value]
    where: tuple[str, ...]

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    @property
    def inputs(self) -> list[Value]:
        return [leaf for leaf in tree_leaves(self.args) if isinstance(leaf, Value)]

    @property
    def module(self) -> str:
        return self.where[-1] if self.where else ""

    @property
    def reads_value(self) -> bool:
        """Whether Python saw elements, and may have decided something by them."""
        return self.op == READ


@dataclass
class Graph:
    """``calls`` in order, the model's parameters and buffers, its inputs and outputs, and which
    module returned a tensor first."""

    calls: list[Call]
    leaves: list[Value]
    inputs: list[Value]
    outputs: list[Value]
    result: Any
    returned: dict[Value, str]


READ = "reads the elements of a tensor in Python"
STALE = "uses a tensor after a view of it was changed in place"
# These copy elements out without an operator that a dispatch mode would see.
_SILENT_READS = {Tensor.tolist, Tensor.numpy, Tensor.__array__}


def trace(model: nn.Module, example_input: Any) -> Graph:
    """Run ``model`` in eval mode without gradients and record what it computes.

    Args:
        model: left as it was, hooks and training flags included.
        example_input: a tuple or list of arguments, a mapping of keywords, or the only argument.
    """
    recorder = _Recorder()
    for prefix, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            leaf = recorder.leaf(tensor)
            leaf.owners.append((module, name, f"{prefix}.{name}" if prefix else name))
    leaves = [value for value in recorder.values.values() if value.leaf is not None]
    inputs = [t for t in tree_leaves(example_input) if isinstance(t, Tensor)]
    entered = [recorder.value(t) for t in inputs]
    with evaluating(model), _modules_named(model, recorder), _SilentReads(recorder), recorder:
        result = call(model, example_input)
    outputs = [recorder.value(t) for t in tree_leaves(result) if isinstance(t, Tensor)]
    return Graph(recorder.calls, leaves, entered, outputs, result, recorder.returned)


@contextmanager
def _modules_named(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Let the recorder know the names of the modules whose forward is running."""
    with ExitStack() as stack:
        for name, module in model.named_modules():

            def enter(module: nn.Module, args: Any, name: str = name) -> None:
                recorder.where.append(name)

            def leave(module: nn.Module, args: Any, output: Any) -> None:
                recorder.leave(output)

            handles = [
                module.register_forward_pre_hook(enter, prepend=True),
                module.register_forward_hook(leave, always_call=True),
            ]
            for handle in handles:
                stack.callback(handle.remove)
        yield


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.values: dict[int, Value] = {}
        self.where: list[str] = []
        self.returned: dict[Value, str] = {}
        self._kept: list[Tensor] = []  # keys are addresses of objects: none may be reused
        self._sharing: dict[int, list[Tensor]] = {}
        self._stale: dict[int, tuple[Value, Value]] = {}

    def leaf(self, tensor: Tensor) -> Leaf:
        value = self.value(tensor)
        if value.leaf is None:
            value.leaf = Leaf(tensor)
        return value.leaf

    def value(self, tensor: Tensor) -> Value:
        """What ``tensor`` holds now."""
        if id(tensor) in self._stale:
            before, written = self._stale.pop(id(tensor))
            renewed = Value(tuple(tensor.shape))
            args = {"before": before, "written": written}
            self.calls.append(Call(STALE, None, args, [renewed], tuple(self.where)))
            self._set(tensor, renewed)
        if id(tensor) not in self.values:
            self._set(tensor, Value(tuple(tensor.shape)))
        return self.values[id(tensor)]

    def _set(self, tensor: Tensor, value: Value) -> None:
        if id(tensor) not in self.values:
            self._kept.append(tensor)
            self._sharing.setdefault(_memory(tensor), []).append(tensor)
        self.values[id(tensor)] = value

    def read(self, tensor: Tensor) -> None:
        args = {"self": self.value(tensor)}
        self.calls.append(Call(READ, None, args, [], tuple(self.where)))

    def leave(self, output: Any) -> None:
        """The innermost module is done. What it read goes on where it returns numbers."""
        inside = tuple(self.where)
        name = self.where.pop()
        if isinstance(output, Tensor) and id(output) not in self._stale:
            self.returned.setdefault(self.value(output), name)
        if any(isinstance(leaf, bool | int | float) for leaf in tree_leaves(output)):
            for call in [c for c in self.calls if c.reads_value and c.where == inside]:
                self.calls.append(Call(READ, None, call.args, [], tuple(self.where)))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        bound = _bind(func, args, kwargs)
        taken = tree_map_only(Tensor, self.value, bound)
        result = func(*args, **kwargs)
        if torch.Tag.data_dependent_output in func.tags:
            for tensor in tree_leaves(bound):
                if isinstance(tensor, Tensor):
                    self.read(tensor)
            return result
        results = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        written = [
            bound[a.name]
            for a in func._schema.arguments
            if a.alias_info is not None and a.alias_info.is_write and a.name in bound
        ]
        written = [t for t in tree_leaves(written) if isinstance(t, Tensor)]
        targets = results + [t for t in written if not any(t is r for r in results)]
        outputs = [Value(tuple(t.shape)) for t in targets]
        name = func._schema.name.split("::")[-1]
        op = name.removesuffix("_") if func._schema.is_mutable else name
        self.calls.append(Call(op, func, taken, outputs, tuple(self.where)))
        if op == "t" and taken["self"].leaf is not None:
            outputs[0].transposed = taken["self"].leaf
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        for tensor, value in zip(targets, outputs, strict=True):
            if not any(isinstance(v, Value) for v in tree_leaves(taken)) and not seeded:
                value.made = tensor.detach().clone()
            if any(tensor is w for w in written):
                for other in self._sharing.get(_memory(tensor), []):
                    if other is not tensor:
                        self._stale[id(other)] = (self.values[id(other)], value)
                self._stale.pop(id(tensor), None)
            self._set(tensor, value)
        return result


class _SilentReads(TorchFunctionMode):
    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _SILENT_READS and args[0].numel() > 0:
            self._recorder.read(args[0])
        return func(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def _bind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, defaults filled in."""
    bound = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
    bound.update(zip((a.name for a in func._schema.arguments), args, strict=False))
    return {**bound, **kwargs}
