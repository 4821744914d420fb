"""compact against what one would write without it: python -m bench.compact

All layers of a network at once, with sets drawn at random. "nonzero" asks each layer's mask for its
channels, which on a GPU waits for the device every time; "specification" is compact in plain torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.harness import Provider, Row, interleave, results_path, table, write_csv
from neq_kernels import native, reference

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
# Neurons per layer: ResNet-50's convolutions, each with its norm, and GPT-2 medium's linear layers.
NETWORKS = {
    "ResNet-50": [64, 64]
    + [c for w, n in STAGES for c in (w, w, w, w, 4 * w, 4 * w) * n + (4 * w, 4 * w)],
    "GPT-2 medium": [3072, 1024, 4096, 1024] * 24,
}
SHARES = (1.0, 0.5, 0.1)
EPSILON = 1e-3


def _native(layers: list[Tensor], i: int) -> None:
    torch.ops.neq_kernels.compact(layers, EPSILON)


def _specification(layers: list[Tensor], i: int) -> None:
    reference.compact(layers, EPSILON)


def _nonzero(layers: list[Tensor], i: int) -> None:
    for layer in layers:
        mask = layer if layer.dtype == torch.bool else reference.moving(layer, EPSILON)
        mask.nonzero().flatten().to(torch.int32).cpu()


WAYS: dict[str, Callable[[list[Tensor], int], None]] = {
    "nonzero": _nonzero,
    "specification": _specification,
    "compact": _native,
}


def layers_of(sizes: Sequence[int], share: float, kind: str, device: str) -> list[Tensor]:
    """A mask, or velocities, per layer with about ``share`` of its neurons active."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.rand(size, generator=generator, dtype=torch.float64) for size in sizes]
    if kind == "masks":
        return [(values < share).to(device) for values in drawn]
    return [torch.where(values < share, 2 * EPSILON, 0.0).to(device) for values in drawn]


def measure(network: str, share: float, kind: str, seconds: float, device: str) -> list[Row]:
    """A row per way; dense is one nonzero per layer."""
    sizes = NETWORKS[network]
    layers = layers_of(sizes, share, kind, device)
    providers = {name: Provider(partial(way, layers)) for name, way in WAYS.items()}
    timings = interleave(providers, seconds=seconds, rounds=(9, 2000), device=device)
    dense = timings["nonzero"].median
    return [
        Row(
            operator="compact", geometry=f"{network}, {len(sizes)} layers, {sum(sizes)} neurons",
            dtype="bool" if kind == "masks" else "float64", layout=kind, active=share,
            provider=name, dense_ms=dense, ms=timing.median, p20=timing.p20, p80=timing.p80,
            speedup=dense / timing.median,
        )
        for name, timing in timings.items()
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="per setting")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    arguments = parser.parse_args(argv)
    if not native.available():
        raise SystemExit(native.why_not())
    rows = []
    for network in NETWORKS:
        for kind in ("masks", "velocities"):
            for share in SHARES:
                rows += measure(network, share, kind, arguments.seconds, arguments.device)
    print(table(rows))
    path = arguments.output or results_path("compact", arguments.device)
    write_csv(path, rows, arguments.device)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
