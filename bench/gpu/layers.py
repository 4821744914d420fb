"""Every layer of the networks that GPUs train, its whole backward and its weight gradient alone, as
its neurons freeze."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from bench.cases import Case
from bench.harness import Row
from bench.layers import measure
from bench.peaks import Peaks

SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)
DTYPES = (torch.float32, torch.bfloat16)


def units(
    device: str,
    cases: Mapping[str, Sequence[Case]],
    peaks: Peaks,
    seconds: float = 0.1,
    shares: Sequence[float] = SHARES,
) -> dict[str, Callable[[], list[Row]]]:
    """Every measurement by name, those that say most first: a tenth of the neurons everywhere."""
    order = sorted(shares, key=lambda share: abs(share - 0.1))
    return {
        f"{case.geometry} {case.precision} {case.layout} {share} {'dX' if needs_dx else 'dW'}": (
            partial(measure, case, share, seconds, device, needs_dx, peaks)
        )
        for share in order
        for layers in cases.values()
        for case in layers
        for needs_dx in (True, False)
    }
