"""A converted model with all neurons active against the plain one: python -m bench.overhead

Forward and backward of whole networks. The plain network runs twice, as two providers, so that the
difference between those two shows what this machine can tell apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import neq_kernels as neq
from bench.harness import NOISE_LIMIT, Provider, Row, interleave, results_path, table, write_csv
from examples.resnet import resnet32

Forward = Callable[[nn.Module, Tensor], Tensor]


def _call(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def small_mlp() -> tuple[nn.Module, Tensor, Forward]:
    """Three narrow layers on 64 samples: nothing but overhead."""
    layers = [nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*layers), torch.randn(64, 128), _call


def demo_resnet() -> tuple[nn.Module, Tensor, Forward]:
    """The demo's network at half its batch."""
    return resnet32(), torch.randn(64, 3, 32, 32), _call


def small_vit() -> tuple[nn.Module, Tensor, Forward]:
    """transformers' ViT, four layers 192 wide, on 8 images of 64x64."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768,
        image_size=64, patch_size=8,
    )  # fmt: skip
    return ViTForImageClassification(config), torch.randn(8, 3, 64, 64), lambda m, x: m(x).logits


NETWORKS = {"small MLP": small_mlp, "ResNet-32": demo_resnet, "small ViT": small_vit}


def measure(name: str, seconds: float, device: str) -> list[Row]:
    """Rows of plain, plain again and converted."""
    model, x, forward = NETWORKS[name]()
    model, x = model.to(device).train(), x.to(device)
    models = {
        "plain": model,
        "plain again": deepcopy(model),
        "converted, all active": neq.convert(deepcopy(model)),
    }

    def step(network: nn.Module, i: int) -> None:
        forward(network, x).square().mean().backward()

    providers = {
        label: Provider(partial(step, network), lambda i, network=network: network.zero_grad())
        for label, network in models.items()
    }
    timings = interleave(providers, seconds=seconds, rounds=(9, 2000), warmup=3, device=device)
    plain = timings["plain"].median
    return [
        Row(
            operator="forward + backward",
            geometry=f"{name} @ {'x'.join(map(str, x.shape))}",
            dtype="float32",
            layout="contiguous",
            active=1.0,
            provider=label,
            dense_ms=plain,
            ms=timing.median,
            p20=timing.p20,
            p80=timing.p80,
            speedup=plain / timing.median,
        )
        for label, timing in timings.items()
    ]


def verdict(rows: Sequence[Row]) -> str:
    """Whether converting cost more than this run could have shown by chance."""
    plain, again, converted = (row.ms for row in rows)
    overhead, noise = 2 * converted / (plain + again) - 1, abs(plain / again - 1)
    limit = max(noise, NOISE_LIMIT)
    word = "within" if overhead <= limit else "ABOVE"
    return f"overhead {overhead:+.1%}, {word} the noise ({limit:.1%})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seconds", type=float, default=20.0, help="per network")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    rows = []
    for name in arguments.networks:
        measured = measure(name, arguments.seconds, arguments.device)
        print(f"{table(measured)}\n  {verdict(measured)}\n")
        rows += measured
    path = arguments.output or results_path("overhead", arguments.device)
    write_csv(path, rows, arguments.device)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
