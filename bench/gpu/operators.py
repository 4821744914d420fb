"""The operators one by one on a GPU: units of the benches that have a file of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from bench import channel_moments, compact, depthwise_wgrad, pack_channels, row_optimizers
from bench.harness import Row

SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)
SIZES = (32, 256)  # MiB
DTYPES = (torch.float32, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
BATCH = 256


def units(
    device: str, seconds: float = 0.1, sizes: Sequence[float] = SIZES, batch: int = BATCH
) -> dict[str, Callable[[], list[Row]]]:
    """Every measurement by name; ``sizes`` of tensors in MiB."""
    found: dict[str, Callable[[], list[Row]]] = {}
    for mib in sizes:
        for dtype in DTYPES:
            for place in pack_channels.KINDS:
                shape = pack_channels.Shape(*place, mib)
                for share in SHARES:
                    found[f"pack_channels {place} {mib} {dtype} {share}"] = partial(
                        pack_channels.measure, shape, dtype, share, seconds, device
                    )
            for place in channel_moments.KINDS:
                moments = channel_moments.Shape(*place, mib)
                found[f"channel_moments {place} {mib} {dtype}"] = partial(
                    channel_moments.measure, moments, dtype, seconds, device
                )
        for optimizer in row_optimizers.MOVED:
            for kind in row_optimizers.KINDS:
                found[f"{optimizer} {kind} {mib}"] = partial(
                    row_optimizers.measure, optimizer,
                    partial(row_optimizers.layers_of, kind, mib),
                    row_optimizers.geometry_of(kind, mib), seconds, device,
                )  # fmt: skip
    for large in depthwise_wgrad.LARGE:
        for dtype in DTYPES:
            for layout in LAYOUTS:
                found[f"depthwise_wgrad {large} {dtype} {layout}"] = partial(
                    depthwise_wgrad.measure, depthwise_wgrad.Shape(batch, *large), dtype, layout,
                    seconds, device,
                )  # fmt: skip
    for network in compact.NETWORKS:
        for what in ("masks", "velocities"):
            for share in (0.5, 0.1):
                found[f"compact {network} {what} {share}"] = partial(
                    compact.measure, network, share, what, seconds, device
                )
    return found
