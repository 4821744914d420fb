"""What operators that only move elements make of what is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neq_kernels.pruning.shrink import reshape
from neq_kernels.pruning.shrink.base import Known, Of, unknown
from neq_kernels.pruning.shrink.trace import Call

SAME = {"clone", "contiguous", "alias", "detach", "lift_fresh", "_to_copy", "to", "positive"}


def _same(of: Of, call: Call) -> Known:
    return of(call["self"])


def _small(change: Any) -> Any:
    """A rule that does to mask and value what ``change(call, tensor)`` does to a small tensor."""

    def rule(of: Of, call: Call) -> Known:
        known = of(call["self"])
        return Known(change(call, known.mask), change(call, known.value))

    return rule


def _view(of: Of, call: Call) -> Known:
    known = of(call["self"])
    before, after = call["self"].shape, call.outputs[0].shape
    if 0 in before or (known.mask.numel() == 1 and not known.mask.any()):
        nothing = unknown(after)
        kept = known.sums_to_one and before[-1] == after[-1]
        return Known(nothing.mask, nothing.value, sums_to_one=kept)
    expanded, small = list(known.mask.shape), [1] * len(after)
    for left, right in reshape.groups(before, after):
        if any(known.mask.shape[d] > 1 for d in left):
            for d in left:
                expanded[d] = before[d]
            for d in right:
                small[d] = after[d]
    return Known(
        known.mask.expand(expanded).reshape(small), known.value.expand(expanded).reshape(small),
        sums_to_one=known.sums_to_one and before[-1] == after[-1],
    )  # fmt: skip


def _expand(of: Of, call: Call) -> Known:
    known, rank = of(call["self"]), len(call.outputs[0].shape)
    small = [1] * (rank - known.mask.dim()) + list(known.mask.shape)
    return Known(
        known.mask.reshape(small), known.value.reshape(small), sums_to_one=known.sums_to_one
    )


def _slice(call: Call, t: Tensor) -> Tensor:
    dim = call["dim"]
    if t.shape[dim] == 1:
        return t
    return torch.ops.aten.slice(t, dim, call["start"], call["end"], call["step"])


def _select(call: Call, t: Tensor) -> Tensor:
    return t.select(call["dim"], 0 if t.shape[call["dim"]] == 1 else call["index"])


def _parts(of: Of, call: Call) -> list[Known]:
    known, found, start = of(call["self"]), [], 0
    dim = call["dim"]
    for output in call.outputs:
        size = output.shape[dim] if call.op != "unbind" else 1
        pair = [known.mask, known.value]
        if known.mask.shape[dim] > 1:
            pair = [t.narrow(dim, start, size) for t in pair]
        if call.op == "unbind":
            pair = [t.narrow(dim, 0, 1).squeeze(dim) for t in pair]
        found.append(Known(pair[0], pair[1]))
        start += size
    return found


def _cat(of: Of, call: Call) -> Known:
    dim, tensors = call["dim"], call["tensors"]
    dim %= len(call.outputs[0].shape)
    all_known = [of(v) for v in tensors if len(v.shape) == len(call.outputs[0].shape)]
    sizes = [v.shape[dim] for v in tensors if len(v.shape) == len(call.outputs[0].shape)]
    shape = list(torch.broadcast_shapes(*_without(dim, [k.mask.shape for k in all_known])))
    parts = []
    for known, size in zip(all_known, sizes, strict=True):
        target = [*shape[:dim], size, *shape[dim + 1 :]]
        parts.append((known.mask.expand(target), known.value.double().expand(target)))
    return Known(torch.cat([m for m, _ in parts], dim), torch.cat([v for _, v in parts], dim))


def _index_copy(of: Of, call: Call) -> Known:
    shape, index = call["self"].shape, of(call["index"])
    dim = call["dim"] % len(shape)
    if not index.mask.all():
        return unknown(shape)
    mask, _, value = (t.clone() for t in of(call["self"]).along(dim, shape[dim]))
    source = of(call["source"]).along(dim, call["source"].shape[dim])
    value = value.double()
    mask[index.value], value[index.value] = source[0], source[2].double()
    small = [1] * len(shape)
    small[dim] = -1
    return Known(mask.reshape(small), value.reshape(small))


def _without(dim: int, shapes: list[Any]) -> list[list[int]]:
    return [[1 if d == dim else n for d, n in enumerate(shape)] for shape in shapes]


RULES: dict[str, Any] = {
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _view),
    "expand": _expand,
    "transpose": _small(lambda call, t: t.transpose(call["dim0"], call["dim1"])),
    "t": _small(lambda call, t: t.t()),
    "permute": _small(lambda call, t: t.permute(call["dims"])),
    "unsqueeze": _small(lambda call, t: t.unsqueeze(call["dim"])),
    "slice": _small(_slice),
    "select": _small(_select),
    **dict.fromkeys(("split", "split_with_sizes", "unbind", "chunk"), _parts),
    "cat": _cat,
    "index_copy": _index_copy,
    "spread": _same,
}
