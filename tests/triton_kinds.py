"""What tells one configuration of a Triton kernel from another.

The compiler makes a binary of its own for every window, size that happens to be 1 and stride that
happens to divide by 16. What decides whether registers spill, which tensor cores work and how wide
loads are is less: the kernel, its arithmetic, how each operand is loaded, the tile with its launch
options, and whether sums are partial.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from triton_aot import Launch

from neq_kernels.kernels.common import vectors

SIDES = ("ROWS", "COLUMNS", "DEPTH")
# Bytes from which on a load counts as wide.
WIDE = 8


class Kind(NamedTuple):
    """A configuration; ``rows`` and ``columns``: whether those operands load 16 bytes at a time."""

    kernel: str
    arithmetic: str
    rows: bool
    columns: bool
    tile: tuple[int, ...]
    options: tuple[tuple[str, int], ...]
    partial: bool


def kind_of(launch: Launch) -> Kind:
    """The configuration of a launch of one of the four kernels that multiply on tensor cores."""
    arguments = launch.arguments
    itemsize = arguments["dy"].element_size()
    rows, columns = _wide(launch.name, arguments, itemsize)
    return Kind(
        launch.name.removesuffix("_kernel"),
        "half" if itemsize == 2 else arguments["PRECISION"],
        rows,
        columns,
        tuple(arguments[side] for side in SIDES),
        tuple(sorted(launch.options.items())),
        arguments.get("PARTIAL", False),
    )


def _wide(name: str, of: dict[str, Any], itemsize: int) -> tuple[bool, bool]:
    if name == "conv_wgrad_kernel":
        dy, other = 1 if of["WALK_X"] else of["DY_UNIT"], of["X_UNIT"]
    elif name == "conv_dgrad_kernel":
        dy, other = of["DY_UNIT"], of["W_UNIT"]
    else:
        operand = of["x" if "x" in of else "weight"]
        gathered = vectors(of["dy"], 0) if of["GATHER"] else of["ALIGNED"] == 8
        # The columns of transformers' Conv1D come packed, in rows of the width.
        return gathered, vectors(operand, 1) or (operand.stride(0) == 1 and of["ALIGNED"] == 8)
    return dy * itemsize >= WIDE, other * itemsize >= WIDE
