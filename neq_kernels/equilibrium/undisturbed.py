"""Running a model on the side: in eval mode or as it is, no gradient, eager, and everything as
found afterwards."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def undisturbed(
    model: nn.Module, generators: Iterable[torch.Generator] = (), *, evaluate: bool = True
) -> Iterator[None]:
    """Evaluate inside, or without `evaluate` run the model in the mode it is in, and leave no
    trace, also when the body raises.

    Restored are every module's `training` flag, buffers, the random state of torch (CPU and CUDA),
    Python, NumPy and `generators`, and torch's global switches. autocast stays as the caller has
    it.
    """
    with ExitStack() as stack:
        for context in (
            _random_state(generators),
            _buffers(model, unseen=not evaluate),
            _eval_mode(model) if evaluate else nullcontext(),
            _plain_forward(),
        ):
            stack.enter_context(context)
        yield


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    # Set directly, as an overridden train() may do more, such as merging adapters into weights.
    found = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in found:
            module.training = False
        yield
    finally:
        for module, training in found:
            module.training = training


@contextmanager
def _buffers(model: nn.Module, unseen: bool) -> Iterator[None]:
    """`unseen`: whether buffers may change without a new version, as a batch norm's statistics do
    in training."""
    found = [
        (module, name, buffer, buffer._version, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, version, content in found:
                if unseen or buffer._version != version:
                    buffer.copy_(content)
                now = module._buffers.get(name)
                # Of another shape, it is a cache that grew; its module may know the new length.
                if now is not None and now.shape == buffer.shape:
                    module._buffers[name] = buffer


@contextmanager
def _random_state(generators: Iterable[torch.Generator]) -> Iterator[None]:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    states = [(generator, generator.get_state()) for generator in generators]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(numpy_state)
            for generator, state in states:
                generator.set_state(state)


@contextmanager
def _plain_forward() -> Iterator[None]:
    """No gradient, no compiled code and no fused path that would go around the layers' hooks."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    caching = torch.is_autocast_cache_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if (
            "torch._dynamo" in sys.modules
        ):  # else nothing is compiled, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            # Inside one autocast, its cache goes on giving the weights of before the last step.
            torch.set_autocast_cache_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)
            torch.set_autocast_cache_enabled(caching)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's, DistributedDataParallel's and DataParallel's wrappers."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model
