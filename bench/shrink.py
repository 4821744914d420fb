"""What removing pruned neurons gains in a forward pass: python -m bench.shrink

Half of the neurons of every layer but the last are zeroed at random. With norms as initialised a
zero neuron gives zero; with statistics and affine parameters as after training it gives a constant.
The pruned model and its shrunk copy take turns; the pruned one runs twice, as two providers, so
that the difference between those two shows what this machine can tell apart. The error is over
inputs other than those that shrink has seen.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench import shrink_networks as networks
from bench.harness import Provider, interleave, results_path, write_csv
from neq_kernels.pruning import shrink

# The network, and what the speed-up is to reach.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "ResNet-18": (networks.resnet18, 1.8),
    "ResNet-50": (networks.resnet50, 1.8),
    "VGG-16-BN": (networks.vgg16_bn, 1.0),
    "MobileNetV2": (networks.mobilenet_v2, 1.0),
    "DenseNet-121": (networks.densenet121, 1.0),
    "ViT-B/16": (networks.vit_b16, 1.0),
    "U-Net": (networks.UNet, 1.0),
}
NORMS = "fresh", "trained"
LARGEST_ERROR = 1e-5


@dataclass(frozen=True)
class Row:
    """One network. Times are medians; ``noise`` is how far the pruned model is from itself;
    ``max_relative_error`` is relative to the largest output."""

    model: str
    norms: str
    geometry: str
    share_zeroed: float
    multiple: int
    hooks: bool
    parameters_before: int
    parameters_after: int
    before_ms: float
    after_ms: float
    ratio: float
    noise: float
    max_relative_error: float


@torch.no_grad()
def prune(model: nn.Module, share: float, norms: str) -> nn.Module:
    """Zero ``share`` of the neurons of each layer but the last."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and norms == "trained":
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    kinds = nn.Linear, nn.Conv2d, nn.ConvTranspose2d
    for layer in [m for m in model.modules() if isinstance(m, kinds)][:-1]:
        dim = int(isinstance(layer, nn.ConvTranspose2d))
        size = layer.weight.shape[dim]
        layer.weight.index_fill_(dim, torch.randperm(size)[: round(share * size)], 0)
    return model


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = model(x)
    return y if isinstance(y, Tensor) else y.logits


def measure(name: str, norms: str, options: argparse.Namespace) -> Row:
    torch.manual_seed(0)
    pruned = prune(NETWORKS[name][0](), options.share, norms).eval()
    shrunk = copy.deepcopy(pruned)
    x = torch.randn(options.batch, 3, options.image, options.image)
    report = shrink(
        shrunk, torch.randn(1, *x.shape[1:]), multiple=options.multiple, hooks=options.hooks
    )
    wanted = output(pruned, x)
    error = float((output(shrunk, x) - wanted).abs().max() / wanted.abs().max())
    providers = {
        "pruned": Provider(lambda _: output(pruned, x)),
        "again": Provider(lambda _: output(pruned, x)),
        "shrunk": Provider(lambda _: output(shrunk, x)),
    }
    times = interleave(providers, seconds=options.seconds, rounds=(7, 1000))
    pair = sorted((times["pruned"].median, times["again"].median))
    before, after = pair[0], times["shrunk"].median
    return Row(
        name, norms, "x".join(map(str, x.shape)), options.share, options.multiple, options.hooks,
        *report.parameters, before, after, before / after, pair[1] / pair[0] - 1, error,
    )  # fmt: skip


def verdict(row: Row) -> str:
    """Speed-up, parameters and exactness, in one line."""
    wanted = NETWORKS[row.model][1]
    gain = "at least" if row.ratio >= wanted else "BELOW"
    exact = "at most" if row.max_relative_error <= LARGEST_ERROR else "ABOVE"
    return (
        f"{row.model}, {row.norms} norms: {row.before_ms:.1f} -> {row.after_ms:.1f} ms, "
        f"{row.ratio:.2f}x, {gain} {wanted}x (noise {row.noise:.1%}); parameters "
        f"{row.parameters_before / 1e6:.2f} M -> {row.parameters_after / 1e6:.2f} M; outputs "
        f"within {row.max_relative_error:.1e}, {exact} {LARGEST_ERROR:.0e}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(NORMS))
    parser.add_argument("--share", type=float, default=0.5, help="of the neurons, zeroed")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image", type=int, default=112, help="height and width")
    parser.add_argument("--multiple", type=int, default=16, help="of neurons kept per layer")
    parser.add_argument("--hooks", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seconds", type=float, default=5.0, help="per network and kind of norms")
    parser.add_argument("--output", type=Path, help="CSV file (default: under bench/results)")
    options = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    rows: list[Row] = []
    for name in options.networks:
        for norms in options.norms:
            rows.append(measure(name, norms, options))
            print(verdict(rows[-1]), flush=True)
    path = options.output or results_path("shrink")
    write_csv(path, rows)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
