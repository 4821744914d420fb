"""Where channels go in layers: which of them meet a weight, and which a norm or sum needs whole."""

from __future__ import annotations

from neq_kernels.pruning.shrink.axes import Axes, Axis, Rule, carried
from neq_kernels.pruning.shrink.known_layers import (
    ATTENTIONS,
    AVERAGES,
    BATCH_NORMS,
    REDUCTIONS,
    WINDOWS,
)
from neq_kernels.pruning.shrink.trace import Call


def _where(call: Call) -> str:
    return f"{call.op} in {call.module or 'the model'}"


def _convolution(axes: Axes, call: Call) -> None:
    x, weight, out = call["input"], call["weight"], call.outputs[0]
    grouped = call["groups"] > 1
    if weight.leaf is None or (grouped and call["transposed"]):
        what = "a grouped transposed one" if grouped else "a computed weight"
        axes.pin_all(call.inputs, f"{_where(call)}: {what}")
        return
    first, second = axes[weight][:2]
    for axis in (*axes[weight][2:], *axes[x][2:], axes[x][0]):
        axes.pin(axis, f"{_where(call)} slides over them")
    if grouped:
        # Which inputs of each group stay is worked out when the weight is cut.
        axes[weight] = [first, *[None] * (len(weight.shape) - 1)]
        outputs = first
        if axes[x][1] is None:
            axes.pin(outputs, f"{_where(call)}: groups of given inputs")
    else:
        outputs, inputs = (second, first) if call["transposed"] else (first, second)
        axes.join([axes[x][1], inputs], f"{_where(call)} reads what has a given size")
    if call["bias"] is not None:
        outputs = axes.join([outputs, axes[call["bias"]][0]], _where(call))
    axes[out] = [axes[x][0], outputs, *[None] * (len(out.shape) - 2)]


def _mm(axes: Axes, call: Call) -> None:
    added = call["self"] if call.op == "addmm" else None
    left, right = call["mat1" if call.op == "addmm" else "self"], call["mat2"]
    if added is not None and (call["alpha"] != 1 or call["beta"] != 1 or len(added.shape) != 1):
        axes.pin_all(call.inputs, f"{_where(call)} scales what it adds")
        return
    is_weight = right.leaf is not None or right.transposed is not None
    inputs = axes.join(
        [axes[left][1], axes[right][0]], f"{_where(call)} reads what has a given size"
    )
    if not is_weight:
        axes.pin(inputs, f"{_where(call)} sums over them")
    outputs: Axis = axes[right][1]
    if added is not None and right.shape[1] > 1 and added.shape[0] > 1:
        outputs = axes.join([outputs, axes[added][0]], _where(call))
    axes[call.outputs[0]] = [axes[left][0], outputs]


def _bmm(axes: Axes, call: Call) -> None:
    left, right = axes[call["self"]], axes[call["mat2"]]
    batch = axes.join([left[0], right[0]], f"{_where(call)}: the other side has a given size")
    axes.pin(axes.join([left[2], right[1]], _where(call)), f"{_where(call)} sums over them")
    axes[call.outputs[0]] = [batch, left[1], right[2]]


def _attention(axes: Axes, call: Call) -> None:
    query, key, value = (call[name] for name in ("query", "key", "value"))
    mask = call.args.get("attn_mask", call.args.get("attn_bias"))
    q, k, v = axes[query], axes[key], axes[value]
    heads = [q[1], k[1], v[1]]
    if not query.shape[1] == key.shape[1] == value.shape[1]:
        axes.pin_all(call.inputs, f"{_where(call)} shares keys among heads")
    elif mask is not None and len(mask.shape) == 4:
        axes.pin_all([mask], f"{_where(call)} masks by them")
        heads += [axes[mask][1]] if mask.shape[1] > 1 else []
    for axis in (q[3], k[3], k[2], v[2]):
        axes.pin(axis, f"{_where(call)} sums over them")
    head = axes.join(heads, f"{_where(call)}: as many heads as given")
    axes[call.outputs[0]] = [axes.join([q[0], k[0], v[0]], _where(call)), head, q[2], v[3]]


def _batch_norm(axes: Axes, call: Call) -> None:
    x = call["input"]
    named = [call[n] for n in ("weight", "bias", "running_mean", "running_var")]
    parameters = [axes[v][0] for v in named if v is not None]
    given = list(axes[x])
    given[1] = axes.join([given[1], *parameters], f"{_where(call)}: the norm has a given size")
    axes[call.outputs[0]] = given


def _norm(axes: Axes, call: Call) -> None:
    """Statistics over channels: without one of them, they are others."""
    x = call["input"]
    grouped = call.op == "native_group_norm"
    dims = [1] if grouped else range(len(x.shape) - len(call["normalized_shape"]), len(x.shape))
    given = axes[x]
    for dim in dims:
        axes.pin(given[dim], f"{_where(call)} norms over them")
    axes.pin_all([v for v in (call["weight"], call["bias"]) if v is not None], _where(call))
    axes[call.outputs[0]] = given


def _softmax(axes: Axes, call: Call) -> None:
    given = axes[call["self"]]
    axes.pin(given[call["dim"]], f"{_where(call)} sums over them")
    axes[call.outputs[0]] = given


def _reduced(axes: Axes, call: Call) -> None:
    given = axes[call["self"]]
    dims = call.args.get("dim")
    gone = (
        range(len(given))
        if dims is None or dims == []
        else [dims]
        if isinstance(dims, int)
        else dims
    )
    gone = [d % len(given) for d in gone]
    for dim in gone:
        axes.pin(given[dim], f"{_where(call)} is over them")
    left = [None if d in gone else a for d, a in enumerate(given)]
    if not call.args.get("keepdim", False):
        left = [a for d, a in enumerate(left) if d not in gone]
    axes[call.outputs[0]] = left


def _embedding(axes: Axes, call: Call) -> None:
    entries, columns = axes[call["weight"]]
    axes.pin(entries, f"{_where(call)} looks them up")
    axes[call.outputs[0]] = [*axes[call["indices"]], columns]


RULES: dict[str, Rule] = {
    "convolution": _convolution,
    "mm": _mm,
    "addmm": _mm,
    "bmm": _bmm,
    **dict.fromkeys(ATTENTIONS, _attention),
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    "native_layer_norm": _norm,
    "native_group_norm": _norm,
    "_softmax": _softmax,
    **dict.fromkeys((*WINDOWS, *AVERAGES), carried(0, 1)),
    **dict.fromkeys(REDUCTIONS, _reduced),
    "embedding": _embedding,
}
