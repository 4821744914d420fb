"""What layers make of what is known: convolutions, products, norms, pooling, attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from neq_kernels.pruning.shrink.base import Known, Of, fixed, unknown
from neq_kernels.pruning.shrink.trace import Call


def taps(weight: Tensor, groups: int, transposed: bool) -> tuple[Tensor, Tensor]:
    """(whether any tap is nonzero, sum of the taps): ``[groups, outputs, inputs]``, each per group.

    ``weight`` is a convolution's, or a matrix ``[outputs, inputs]``.
    """
    flat = weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)
    flat = flat.unflatten(0, (groups, -1))
    if transposed:
        flat = flat.transpose(1, 2)
    return flat.ne(0).any(3), flat.sum(3)


def _product(
    nonzero: Tensor, sums: Tensor, mask: Tensor, value: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(mask, value) of the outputs ``[groups * outputs]`` of a linear map whose input channels
    ``mask`` are ``value`` at every tap; zero where the mask is False."""
    groups, _, inputs = nonzero.shape
    mask, value = mask.reshape(groups, 1, inputs), value.reshape(groups, 1, inputs)
    out = (sums * torch.where(mask, value, 0.0)).sum(2).flatten()
    return ~(nonzero & ~mask).any(2).flatten(), out if bias is None else out + bias


def _bias(of: Of, call: Call) -> Tensor | None:
    return None if call["bias"] is None else of(call["bias"]).value


def _convolution(of: Of, call: Call) -> Known:
    x, shape = call["input"], call.outputs[0].shape
    weight = of(call["weight"])
    if not weight.mask.all() or (call["bias"] is not None and not of(call["bias"]).mask.all()):
        return unknown(shape)
    size = x.shape[1]
    mask, _, value = of(x).along(1, size)
    if call["transposed"] or any(call["padding"]):
        mask = mask & (value == 0)
    nonzero, sums = taps(
        weight.value.expand(call["weight"].shape), call["groups"], call["transposed"]
    )
    out_mask, out = _product(nonzero, sums, mask, value, _bias(of, call))
    return _channels(out_mask, out, 1, len(shape))


def _channels(mask: Tensor, value: Tensor, dim: int, rank: int) -> Known:
    small = [1] * rank
    small[dim] = -1
    return Known(mask.reshape(small), torch.where(mask, value, 0.0).reshape(small))


def _mm(of: Of, call: Call, x: str = "self") -> Known:
    """x [.., K] @ mat2 [K, N], with addmm's bias where there is one."""
    weight, shape = of(call["mat2"]), call.outputs[0].shape
    bias = of(call["self"]) if call.op == "addmm" else None
    plain = call.op != "addmm" or (call["alpha"] == 1 and call["beta"] == 1)
    if not weight.mask.all() or not plain or (bias is not None and not bias.mask.all()):
        return unknown(shape)
    mask, _, value = of(call[x]).along(-1, call[x].shape[-1])
    nonzero, sums = taps(weight.value.expand(call["mat2"].shape).t(), 1, False)
    if bias is not None and bias.value.dim() != 1:
        return unknown(shape)
    found = _product(nonzero, sums, mask, value, None if bias is None else bias.value)
    return _channels(*found, -1, len(shape))


def _bmm(of: Of, call: Call) -> Known:
    left, right = of(call["self"]), of(call["mat2"])
    nothing = unknown(call.outputs[0].shape)
    # Rows that sum to one average the rows of mat2, which are all alike.
    if left.sums_to_one and right.mask.shape[-2] == 1:
        return Known(right.mask, right.value)
    return nothing


def _attention(of: Of, call: Call) -> Known:
    value = of(call["value"])
    mask = call.args.get("attn_mask", call.args.get("attn_bias"))
    if mask is None and call["dropout_p"] == 0 and value.mask.shape[-2] == 1:
        return Known(value.mask, value.value)
    return unknown(call.outputs[0].shape)


def _batch_norm(of: Of, call: Call) -> Known:
    x, rank = of(call["input"]), len(call["input"].shape)

    def channel(name: str, default: float) -> Tensor:
        value = torch.tensor([default]) if call[name] is None else of(call[name]).value
        return value.reshape([1, -1] + [1] * (rank - 2))

    named = ("weight", "bias", "running_mean", "running_var")
    if any(call[n] is not None and not of(call[n]).mask.all() for n in named):
        return unknown(call.outputs[0].shape)
    gamma, beta = channel("weight", 1.0), channel("bias", 0.0)
    if call.args.get("training", False):
        # A channel that is the same everywhere is its own mean.
        if any(n > 1 for d, n in enumerate(x.mask.shape) if d != 1):
            return unknown(call.outputs[0].shape)
        value, _ = torch.broadcast_tensors(beta, x.value)
    else:
        eps = call["epsilon"] if "epsilon" in call.args else call["eps"]
        scale = gamma / (channel("running_var", 1.0) + eps).sqrt()
        value = (x.value - channel("running_mean", 0.0)) * scale + beta
    mask = x.mask | (gamma == 0)
    mask, value = torch.broadcast_tensors(mask, value)
    return Known(mask, torch.where(mask, value, 0.0))


def _layer_norm(of: Of, call: Call) -> Known:
    """Only where gamma is zero: then beta."""
    shape = call.outputs[0].shape
    if call["weight"] is None or not of(call["weight"]).mask.all():
        return unknown(shape)
    gamma = of(call["weight"]).value
    beta = torch.zeros_like(gamma) if call["bias"] is None else of(call["bias"]).value
    if call.op == "native_group_norm":
        return _channels(gamma == 0, beta, 1, len(shape))
    small = [1] * (len(shape) - gamma.dim()) + list(gamma.shape)
    return Known((gamma == 0).reshape(small), torch.where(gamma == 0, beta, 0.0).reshape(small))


def _pooled(of: Of, call: Call) -> Known:
    """Windows over positions give back what is the same at all of them."""
    known = of(call.args["self"] if "self" in call.args else call["input"])
    if any(n > 1 for n in known.mask.shape[2:]):
        return unknown(call.outputs[0].shape)
    return Known(known.mask, known.value)


def _averaged(of: Of, call: Call) -> Known:
    known = _pooled(of, call)
    zeros_count = any(call["padding"]) and call["count_include_pad"]
    if zeros_count or call["divisor_override"] is not None:
        return Known(known.mask & (known.value == 0), known.value)
    return known


def _padded(of: Of, call: Call) -> Known:
    known, rank, amounts = of(call["self"]), len(call["self"].shape), call["pad"]
    padded = [rank - 1 - i // 2 for i, n in enumerate(amounts) if n > 0]
    if not any(amounts):
        return known
    if any(n < 0 for n in amounts) or any(known.mask.shape[d] > 1 for d in padded):
        return unknown(call.outputs[0].shape)
    mask = known.mask & (known.value == call["value"])
    framed = known.mask & ~mask if call["value"] == 0 and min(padded, default=2) > 1 else None
    return Known(mask, known.value, framed=framed)


def _reduced(of: Of, call: Call) -> Known:
    known, rank = of(call["self"]), len(call["self"].shape)
    dims = call.args.get("dim") or range(rank)
    dims = sorted(d % rank for d in (dims if not isinstance(dims, int) else [dims]))
    mask, value = known.mask.all(dims, keepdim=True), known.value.double()
    if call.op == "sum":
        mask, value = mask & (value == 0).all(dims, keepdim=True), value.sum(dims, keepdim=True)
    else:
        reduce: Callable[..., Tensor] = getattr(torch, call.op)
        value = reduce(value, dims, keepdim=True)
    if not call.args.get("keepdim", False):
        mask, value = mask.squeeze(dims), value.squeeze(dims)
    return Known(mask, value)


def _softmax(of: Of, call: Call) -> Known:
    nothing, rank = unknown(call.outputs[0].shape), len(call.outputs[0].shape)
    return Known(nothing.mask, nothing.value, sums_to_one=call["dim"] % rank == rank - 1)


def _embedding(of: Of, call: Call) -> Known:
    if call["weight"].leaf is None:
        return unknown(call.outputs[0].shape)
    table = fixed(call["weight"].leaf.tensor).value
    return _channels((table == table[:1]).all(0), table[0], -1, len(call.outputs[0].shape))


BATCH_NORMS = (
    "native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit",
    "cudnn_batch_norm", "miopen_batch_norm",
)  # fmt: skip
ATTENTIONS = (
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)  # fmt: skip
REDUCTIONS = ("mean", "sum", "amax", "amin")
WINDOWS = (
    *(f"max_pool{n}d_with_indices" for n in (2, 3)), "max_pool1d",
    *(f"_adaptive_avg_pool{n}d" for n in (2, 3)), "adaptive_avg_pool1d",
    *(f"adaptive_max_pool{n}d" for n in (2, 3)),
    *(f"upsample_nearest{n}d" for n in (1, 2, 3)),
    *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)),
    "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
)  # fmt: skip
AVERAGES = ("avg_pool2d", "avg_pool3d", "avg_pool1d")

RULES: dict[str, Any] = {
    "convolution": _convolution,
    "mm": _mm,
    "addmm": lambda of, call: _mm(of, call, "mat1"),
    "bmm": _bmm,
    **dict.fromkeys(ATTENTIONS, _attention),
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _layer_norm,
    **dict.fromkeys(WINDOWS, _pooled),
    **dict.fromkeys(AVERAGES, _averaged),
    "constant_pad_nd": _padded,
    **dict.fromkeys(REDUCTIONS, _reduced),
    "_softmax": _softmax,
    "embedding": _embedding,
}
