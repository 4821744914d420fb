"""CUDA graphs, and on the CPU their stand-in: what was recorded is called again on the same
tensors, with the numbers that the host had then."""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neq_kernels import active, layer, zeroing


class Recorded(TorchDispatchMode):
    """Every operation within, to be replayed into the memory of its results."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, result in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.detach().copy_(new)


@contextmanager
def _pretend_to_capture(monkeypatch):
    with monkeypatch.context() as patch:
        for module in (active, layer, zeroing):
            patch.setattr(module, "capturing", lambda tensor: True)
        yield


def capture(run, device, monkeypatch):
    """``run()`` as a graph: something with ``replay()``."""
    if device == "cpu":
        recorded = Recorded()
        with _pretend_to_capture(monkeypatch), recorded:
            run()
        return recorded
    # As torch's notes on CUDA graphs ask for: warm up on another stream, then capture.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph
