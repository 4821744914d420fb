"""Tensors that say they are on a device and are not: what crosses to the host is counted.

Inside `PretendDevice`, whatever is made for `DEVICE` is a `Pretended`, which computes on the
CPU. Copies to the CPU and reads of single values, each of which would wait for a real device, are
counted.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")  # a device that needs no driver
# Operations whose result's size or value the host has to wait for.
WAITING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "unique", "masked_select")


class Pretended(torch.Tensor):
    """`held` is what it holds."""

    @staticmethod
    def __new__(cls, real):
        return torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(),
            dtype=real.dtype, device=DEVICE, requires_grad=real.requires_grad,
        )  # fmt: skip

    def __init__(self, real):
        self.held = real.detach()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func}: expected to run inside PretendDevice")

    __torch_function__ = torch._C._disabled_torch_function_impl


class PretendDevice(TorchDispatchMode):
    """Attributes: `copies`, how many tensors came to the host; `waits`, what else waited."""

    def __init__(self):
        super().__init__()
        self.copies = 0
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in _leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        here = any(isinstance(x, Pretended) for x in tensors)
        asked = kwargs.get("device")
        there = here if asked is None else torch.device(asked).type == DEVICE.type
        if asked is not None and there:
            kwargs["device"] = torch.device("cpu")
        name = func.overloadpacket.__name__
        if name == "copy_":
            there = isinstance(args[0], Pretended)
            here = isinstance(args[1], Pretended)
        if here and not there:
            self.copies += 1
        elif here and name in WAITING:
            self.waits.append(name)
        if name == "_to_copy" and here != there:
            kwargs.pop("device", None)
        result = func(*_real(args), **_real(kwargs))
        if name.endswith("_") and not name.endswith("__") and isinstance(args[0], torch.Tensor):
            return args[0]
        return (
            tree_map(lambda x: Pretended(x) if isinstance(x, torch.Tensor) else x, result)
            if (there)
            else result
        )


def _leaves(tree):
    return torch.utils._pytree.tree_leaves(tree)


def _real(tree):
    return tree_map(lambda x: x.held if isinstance(x, Pretended) else x, tree)
