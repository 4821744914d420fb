"""Where channels go in operators that only move elements."""

from __future__ import annotations

import torch
from torch import Tensor

from neq_kernels.pruning.shrink import reshape
from neq_kernels.pruning.shrink.axes import Axes, Axis, Rule
from neq_kernels.pruning.shrink.known_shapes import SAME
from neq_kernels.pruning.shrink.trace import Call


def _where(call: Call) -> str:
    return f"{call.op} in {call.module or 'the model'}"


def _same(axes: Axes, call: Call) -> None:
    axes[call.outputs[0]] = axes[call["self"]]


def _permuted(axes: Axes, call: Call) -> None:
    given = axes[call["self"]]
    order = list(range(len(given)))
    if call.op == "permute":
        order = [d % len(given) for d in call["dims"]]
    elif call.op == "transpose":
        a, b = call["dim0"] % len(given), call["dim1"] % len(given)
        order[a], order[b] = b, a
    else:
        order.reverse()
    axes[call.outputs[0]] = [given[d] for d in order]


def _view(axes: Axes, call: Call) -> None:
    before, after, given = call["self"].shape, call.outputs[0].shape, axes[call["self"]]
    result: list[Axis] = [None] * len(after)
    if 0 in before:
        axes.pin_all([call["self"]], f"{_where(call)}: empty")
        return
    for left, right in reshape.groups(before, after):
        left = [d for d in left if before[d] > 1]
        right = [d for d in right if after[d] > 1]
        tracked = [d for d in left if given[d] is not None]
        if not tracked:
            continue
        if len(right) == 1 and len(tracked) == 1:
            result[right[0]] = _merged(given, before, left)
        elif len(left) == 1:
            place, axis = _divided(axes, call, given[left[0]], [after[d] for d in right])
            if axis is not None:
                result[right[place]] = axis
        else:
            for d in tracked:
                axes.pin(given[d], f"{_where(call)} cuts across them")
    axes[call.outputs[0]] = result


def _merged(given: list[Axis], before: tuple[int, ...], left: list[int]) -> Tensor:
    """The atoms of one dimension among ``left``, repeated over the others."""
    parts = []
    for i, d in enumerate(left):
        if given[d] is not None:
            shape = [1] * len(left)
            shape[i] = before[d]
            parts.append(given[d].reshape(shape))  # type: ignore[union-attr]
    return parts[0].expand([before[d] for d in left]).flatten()


def _divided(
    axes: Axes, call: Call, axis: Tensor | None, sizes: list[int]
) -> tuple[int, Tensor | None]:
    """(which of several dimensions takes the channels, their atoms). Merged channels find their
    dimension again; fresh ones are taken by the last but one, as the heads of attention are."""
    assert axis is not None
    blocks = axis.reshape(sizes)
    classes = axes.of_roots(blocks)
    for place in range(len(sizes)):
        others = [d for d in range(len(sizes)) if d != place]
        first = classes
        for d in others:
            first = first.narrow(d, 0, 1)
        if bool((classes == first).all()):
            for d in others:
                blocks = blocks.narrow(d, 0, 1)
            return place, blocks.flatten()
    if not axes.dare(axis, f"{_where(call)} splits them up"):
        return 0, None
    place = len(sizes) - 2
    rows = blocks.movedim(place, 0).flatten(1)
    for column in range(1, rows.shape[1]):
        axes.join([rows[:, 0], rows[:, column]], "")
    return place, rows[:, 0]


def _expand(axes: Axes, call: Call) -> None:
    given, out = axes[call["self"]], call.outputs[0]
    axes[out] = [None] * (len(out.shape) - len(given)) + given


def _unsqueeze(axes: Axes, call: Call) -> None:
    given, out = list(axes[call["self"]]), call.outputs[0]
    given.insert(call["dim"] % len(out.shape), None)
    axes[out] = given


def _squeeze(axes: Axes, call: Call) -> None:
    shape, given = call["self"].shape, axes[call["self"]]
    dims = call.args.get("dim")
    gone = range(len(shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = [d % len(shape) for d in gone]
    axes[call.outputs[0]] = [a for d, a in enumerate(given) if not (d in gone and shape[d] == 1)]


def _select(axes: Axes, call: Call) -> None:
    given = list(axes[call["self"]])
    axis = given.pop(call["dim"] % (len(given)))
    axes.pin(axis, f"{_where(call)} takes one of them")
    for out in call.outputs:
        axes[out] = given


def _slice(axes: Axes, call: Call) -> None:
    given = list(axes[call["self"]])
    dim = call["dim"] % len(given)
    axis = given[dim]
    if axis is not None and axes.dare(axis, f"{_where(call)} takes a part of them"):
        given[dim] = torch.ops.aten.slice(axis, 0, call["start"], call["end"], call["step"])
    else:
        given[dim] = None
    axes[call.outputs[0]] = given


def _split(axes: Axes, call: Call) -> None:
    given, dim = list(axes[call["self"]]), call["dim"] % len(call["self"].shape)
    axis, start = given[dim], 0
    whole = axis is None or axes.dare(axis, f"{_where(call)} takes parts of them")
    for out in call.outputs:
        size = out.shape[dim]
        part = axis[start : start + size] if axis is not None and whole else None
        axes[out] = [*given[:dim], part, *given[dim + 1 :]]
        start += size


def _cat(axes: Axes, call: Call) -> None:
    out = call.outputs[0]
    dim = call["dim"] % len(out.shape)
    values = [v for v in call["tensors"] if len(v.shape) == len(out.shape)]
    result: list[Axis] = []
    for d in range(len(out.shape)):
        if d != dim:
            result.append(
                axes.join([axes[v][d] for v in values], f"{_where(call)} beside a given size")
            )
        elif all(axes[v][d] is None for v in values):
            result.append(None)
        else:
            result.append(
                torch.cat([_or_fixed(axes, call, axes[v][d], v.shape[d]) for v in values])
            )
    axes[out] = result


def _or_fixed(axes: Axes, call: Call, axis: Axis, size: int) -> Tensor:
    """``axis``, or as many atoms that stay."""
    if axis is None:
        axis = axes.new(size)
        axes.pin(axis, f"{_where(call)} of a given size")
    return axis


def _padded(axes: Axes, call: Call) -> None:
    given, amounts = list(axes[call["self"]]), call["pad"]
    for i in range(0, len(amounts), 2):
        dim = len(given) - 1 - i // 2
        axis = given[dim]
        if axis is None or not any(amounts[i : i + 2]):
            continue
        if min(amounts[i : i + 2]) < 0:
            axes.pin(axis, f"{_where(call)} cuts some off")
            given[dim] = None
        else:
            ends = [_or_fixed(axes, call, None, n) for n in amounts[i : i + 2]]
            given[dim] = torch.cat([ends[0], axis, ends[1]])
    axes[call.outputs[0]] = given


RULES: dict[str, Rule] = {
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(("transpose", "t", "permute"), _permuted),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _view),
    "expand": _expand,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "select": _select,
    "unbind": _select,
    "slice": _slice,
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    "cat": _cat,
    "constant_pad_nd": _padded,
}
