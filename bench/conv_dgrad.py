"""dX of a convolution from its active channels, on a CPU, every way: python -m bench.conv_dgrad

"aten" computes it from all channels; "packed" packs the active ones of dY, gathers their weights
and has aten compute the rest; "aten, packed" is aten's part of that alone; "direct" is the native
kernel, which packs nothing. The ceiling is the active share of aten's time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from bench.conv_wgrad import Problem, run
from neq_kernels import reference


def ways(problem: Problem) -> dict[str, Callable[[int], object]]:
    """Every way to the input gradient."""
    channels, weight, kept = problem.channels, problem.weight, problem.kept
    window, last = problem.shape.window, problem.layout == torch.channels_last
    width = kept.shape[0]

    def packed(i: int) -> None:
        x, dy = problem.sets[i]
        index = channels.padded[:width]
        narrow, _ = torch.ops.neq_kernels.pack_channels(dy, index, width, 1, False)
        rows = weight.index_select(0, index.clamp(min=0))
        reference.conv_gradients(narrow, x, rows, window, 1, (True, False))

    def direct(i: int) -> None:
        x, dy = problem.sets[i]
        torch.ops.neq_kernels.conv_dgrad(
            dy, weight, channels.index, channels.count, x.shape[2:], *window, last
        )

    return {
        "aten": problem.aten(problem.sets, weight, (True, False)),
        "aten, packed": problem.aten(problem.packed, kept, (True, False)),
        "packed": packed,
        "direct": direct,
    }


def main(argv: Sequence[str] | None = None) -> None:
    run("conv_dgrad", ways, __doc__, argv)


if __name__ == "__main__":
    main()
