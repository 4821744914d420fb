"""What removing pruned neurons gains in a forward pass: python -m bench.shrink

Half of the neurons of every layer but the last are zeroed at random. With norms as initialised a
zero neuron gives zero; with statistics and affine parameters as after training it gives a constant,
and where that meets padding one channel has to stay that carries all of them. The pruned model and
its shrunk copy take turns; the pruned one runs twice, as two providers, so that the difference
between those two shows what this machine can tell apart.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.harness import Provider, Row, interleave, results_path, table, write_csv
from neq_kernels.pruning import ShrinkReport, shrink


def _resnet(**sizes: object) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(num_labels=1000, **sizes))


def _resnet18() -> nn.Module:
    return _resnet(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")


def _mobilenet_v2() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1000))


# The network, and what the speed-up is to reach.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "ResNet-18": (_resnet18, 1.5),
    "ResNet-50": (_resnet, 1.5),
    "MobileNetV2": (_mobilenet_v2, 1.0),
}
NORMS = "fresh", "trained"


@torch.no_grad()
def prune(model: nn.Module, share: float, norms: str) -> nn.Module:
    """Zero ``share`` of the neurons of each layer but the last."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and norms == "trained":
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers[:-1]:
        size = len(layer.weight)
        layer.weight[torch.randperm(size)[: round(share * size)]] = 0
    return model


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(x).logits


def measure(
    name: str, norms: str, share: float, batch: int, image: int, multiple: int, seconds: float
) -> tuple[list[Row], ShrinkReport]:
    """Rows of the pruned model (twice) and the shrunk one, and what shrink says."""
    torch.manual_seed(0)
    pruned = prune(NETWORKS[name][0](), share, norms).eval()
    shrunk = copy.deepcopy(pruned)
    x = torch.randn(batch, 3, image, image)
    report = shrink(shrunk, x, multiple=multiple)
    providers = {
        "pruned": Provider(lambda _: logits(pruned, x)),
        "pruned again": Provider(lambda _: logits(pruned, x)),
        "shrunk": Provider(lambda _: logits(shrunk, x)),
    }
    timings = interleave(providers, seconds=seconds, rounds=(7, 1000))
    reference = timings["pruned"].median
    rows = [
        Row(
            operator=f"{name} forward, {norms} norms",
            geometry=f"{batch}x3x{image}x{image}",
            dtype="float32",
            layout="contiguous",
            active=1 - share,
            provider=label,
            dense_ms=reference,
            ms=timing.median,
            p20=timing.p20,
            p80=timing.p80,
            speedup=reference / timing.median,
            path=f"multiple of {multiple}" if label == "shrunk" else "",
        )
        for label, timing in timings.items()
    ]
    return rows, report


def verdict(name: str, rows: Sequence[Row], report: ShrinkReport) -> str:
    """Speed-up, parameters and exactness, in one line."""
    pruned, again, shrunk = (row.ms for row in rows)
    wanted, gain = NETWORKS[name][1], min(pruned, again) / shrunk
    before, after = report.parameters
    word, noise = (
        "at least" if gain >= wanted else "BELOW",
        abs(pruned - again) / min(pruned, again),
    )
    return (
        f"{rows[0].operator}: {gain:.2f}x, {word} {wanted}x (noise {noise:.1%}); "
        f"parameters {before / 1e6:.2f} M -> {after / 1e6:.2f} M, outputs within {report.error:.1e}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(NORMS))
    parser.add_argument("--share", type=float, default=0.5, help="of the neurons, zeroed")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image", type=int, default=112, help="height and width")
    parser.add_argument("--multiple", type=int, default=8, help="of neurons kept per layer")
    parser.add_argument("--seconds", type=float, default=6.0, help="per network and kind of norms")
    parser.add_argument("--output", type=Path, help="CSV file (default: under bench/results)")
    options = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    all_rows: list[Row] = []
    for name in options.networks:
        for norms in options.norms:
            rows, report = measure(
                name, norms, options.share, options.batch, options.image, options.multiple,
                options.seconds,
            )  # fmt: skip
            print(table(rows), verdict(name, rows, report), "", sep="\n", flush=True)
            all_rows += rows
    path = options.output or results_path("shrink")
    write_csv(path, all_rows)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
