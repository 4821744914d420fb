"""What a pruned network is: how much is left, what it costs before and after it is shrunk, how
sharp its minimum is and how class-specific its units are."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from statistics import median
from time import thread_time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.pruning_training import Settings, Split, judged
from neq_kernels import pruning

COLUMNS = (
    "network", "method", "seed", "test_error", "zeroed", "removed", "kilobytes",
    "shrunk_kilobytes", "forward_ms", "shrunk_forward_ms", "backward_ms", "shrunk_backward_ms",
    "psp_entropy", "psp_entropy_of_all", "eigenvalue", "trace",
)  # fmt: skip
TIMED_BATCH, CURVED = 64, 128


def describe(method: str, settings: Settings, model: nn.Module, data: Split) -> dict[str, object]:
    """One row of the table; what is shrunk stays empty without neurons to remove."""
    some = [(data.train[0][:CURVED], data.train[1][:CURVED])]
    curvature = pruning.sharpness(model, some, iterations=15, tolerance=0.02, probes=6)
    models = [copy.deepcopy(model), *_shrunk(method, model, data.test[0][:1])]
    sizes = [_kilobytes(m) for m in models]
    times = milliseconds(models, (data.train[0][:TIMED_BATCH], data.train[1][:TIMED_BATCH]))
    before_and_after = [
        values[i] if i < len(models) else None
        for values in (sizes, [t[0] for t in times], [t[1] for t in times])
        for i in (0, 1)
    ]
    values = [
        settings.network, method, settings.seed, 1 - judged(model, data.test)[1],
        pruning.share_zeroed(model), pruning.share_removed(model), *before_and_after,
        *entropies(model, data), curvature.eigenvalue, curvature.trace,
    ]  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _shrunk(method: str, model: nn.Module, image: Tensor) -> list[nn.Module]:
    """A smaller copy, if there are neurons to remove and anything is left without them."""
    if pruning.share_removed(model) == 0:
        return []
    small = copy.deepcopy(model).eval()
    pruning.set_masks(small, {})  # they are of the layers as they were
    try:
        pruning.shrink(small, image)
    except ValueError as error:
        print(f"{method}: not shrunk: {error}")
        return []
    return [small]


def entropies(model: nn.Module, data: Split) -> tuple[float, float]:
    """PSP-entropy of a unit in bits, summed over classes: the mean over the units that are not
    pruned, and over all. A unit is a channel; where a batch norm follows, its output counts."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    norms = {name.replace("conv", "bn"): name for name in layers}
    watched = {
        n if n in dict(model.named_modules()) else layer: layer for n, layer in norms.items()
    }
    found = pruning.psp_entropy(model, [data.test], per="channel", layers=list(watched))
    left, everything = [], []
    for name, layer in watched.items():
        # A class may be missing from a small test set.
        bits = found[name].nansum(1)
        everything.append(bits)
        left.append(bits[(layers[layer].weight != 0).flatten(1).any(1)])
    return torch.cat(left).mean().item(), torch.cat(everything).mean().item()


def milliseconds(
    models: Sequence[nn.Module], batch: tuple[Tensor, Tensor], repeats: int = 9
) -> list[tuple[float, float]]:
    """Processor milliseconds of a forward and a backward pass of each model, on one thread. They
    take turns, so that what else the machine does slows all of them alike."""
    images, labels = batch
    spent: list[list[tuple[float, float]]] = [[] for _ in models]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(repeats):
            for model, own in zip(models, spent, strict=True):
                started = thread_time()
                loss = F.cross_entropy(model.train()(images), labels)
                between = thread_time()
                loss.backward()
                own.append((1e3 * (between - started), 1e3 * (thread_time() - between)))
    finally:
        torch.set_num_threads(threads)
    return [(median(f for f, _ in own), median(b for _, b in own)) for own in spent]


def _kilobytes(model: nn.Module) -> float:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.getbuffer().nbytes / 1e3
