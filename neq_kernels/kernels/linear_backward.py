"""linear_backward: both gradients of a linear layer from its active channels alone.

dX[m, :] = sum_i dY[m, index[i]] * W[index[i], :] and dW[index[i], :] = sum_m dY[m, index[i]] *
X[m, :]: two kernels, and one packing of dY for both where packing pays.
"""

from __future__ import annotations

from torch import Tensor

from neq_kernels.active import Lists
from neq_kernels.kernels import linear_dgrad, linear_wgrad
from neq_kernels.kernels.common import (
    arithmetic,
    check,
    check_tokens,
    packing_bytes,
    remembered,
    width_of,
)
from neq_kernels.kernels.configuration import cheaper_form
from neq_kernels.kernels.device import Device, device_of
from neq_kernels.reference import Pack, as_rows, pack_channels

FORMS = linear_wgrad.FORMS


def linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    lists: Lists,
    bias: bool,
    columns: bool,
    pack: Pack = pack_channels,
    *,
    form: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator of :func:`neq_kernels.reference.linear_backward`, same arguments and results.

    Args:
        form: of dY, "gathered" or "packed", instead of the one of less predicted cost.

    Raises:
        TypeError: dy, x and weight differ in dtype, or it is not one that the kernels serve.
        ValueError: dy, x, weight or the lists are not on one device, or their shapes do not match.
    """
    rows, inputs, width = as_rows(dy), as_rows(x), width_of(lists)
    form = _form(
        rows,
        inputs,
        weight,
        lists.padded,
        width,
        columns,
        arithmetic(dy.dtype),
        device_of(dy),
        form,
    )
    if form == "packed":
        rows, _ = pack(rows, lists.padded[:width], width, 1, False)
    dx = linear_dgrad.launch(rows, weight, lists, columns, form, pack)
    dw, db = linear_wgrad.launch(rows, inputs, lists, bias, columns, form, dy.dtype)
    return dx.view(x.shape), dw, db


@remembered
def _form(
    dy: Tensor, x: Tensor, weight: Tensor, index: Tensor, width: int, columns: bool,
    arithmetic: str, device: Device, form: str | None,
) -> str:  # fmt: skip
    check(dy, index, x=x)
    check_tokens(dy, x)
    linear_dgrad.check_weight(dy, weight, index, columns)
    if form:
        return form
    weight_rows = linear_dgrad.weight_rows(weight, columns)
    gathered, packed = (
        (
            linear_wgrad.product(dy, x, width, arithmetic, name),
            linear_dgrad.product(dy, weight_rows, width, arithmetic, name),
        )
        for name in FORMS
    )
    return cheaper_form(gathered, packed, packing_bytes(dy, width), device)
