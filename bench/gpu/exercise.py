"""Calls one operator's kernels on small tensors of awkward sizes and compares them with the
specification: what compute-sanitizer watches. ``python -m bench.gpu.exercise conv_wgrad``
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from neq_kernels import backends, reference
from neq_kernels.active import Lists, lists

SIZE = 37
INDEX = (0, 1, 5, 17, 18, 30, 36)
CHANNELS_LAST = torch.channels_last
# Sums are of some hundred terms of about 1.
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.1}
Calls = Iterator[tuple[str, tuple[Any, ...]]]


def active(device: str, size: int = SIZE, index: Sequence[int] = INDEX) -> Lists:
    padded = torch.full((size,), -1, dtype=torch.int32)
    padded[: len(index)] = torch.tensor(index, dtype=torch.int32)
    return lists(padded.to(device), torch.tensor(len(index)))


def images(shape: tuple[int, ...], layout: torch.memory_format, **where: Any) -> Tensor:
    return torch.randn(shape, **where).contiguous(memory_format=layout)


def pack_channels(where: dict[str, Any]) -> Calls:
    padded = active(where["device"]).padded[:16]
    for shape in ((70, SIZE), (3, SIZE, 7, 9), (2, SIZE, 8, 8)):
        for layout in (torch.contiguous_format, CHANNELS_LAST)[: len(shape) - 2 or 1]:
            for bias in (True, False):
                yield f"{shape} {layout}", (images(shape, layout, **where), padded, 16, 1, bias)


def linear_wgrad(where: dict[str, Any]) -> Calls:
    for tokens in (70, 1000):
        dy, x = torch.randn(tokens, SIZE, **where), torch.randn(tokens, 29, **where)
        for columns in (False, True):
            yield f"{tokens} columns={columns}", (dy, x, active(where["device"]), True, columns)


def linear_backward(where: dict[str, Any]) -> Calls:
    for label, (dy, x, channels, bias, columns) in linear_wgrad(where):
        shape = (29, SIZE) if columns else (SIZE, 29)
        yield label, (dy, x, torch.randn(shape, **where), channels, bias, columns)


def conv_wgrad(where: dict[str, Any]) -> Calls:
    # Inputs, outputs, kernel, stride, groups.
    geometries = ((19, SIZE, 3, 1, 1), (16, 40, 3, 2, 1), (24, SIZE, 1, 1, 1), (12, 40, 3, 1, 4),
                  (40, 40, 3, 1, 40))  # fmt: skip
    for inputs, outputs, kernel, stride, groups in geometries:
        out = (9 - 1) // stride + 1
        for layout in (torch.contiguous_format, CHANNELS_LAST):
            dy = images((3, outputs, out, out), layout, **where)
            x = images((3, inputs, 9, 9), layout, **where)
            weight = images((outputs, inputs // groups, kernel, kernel), layout, **where)
            window = ((stride,) * 2, (kernel // 2,) * 2, (1, 1), groups)
            channels = active(where["device"], outputs)
            yield f"{inputs}->{outputs} {kernel} {groups}", (dy, x, weight, channels, True, *window)


def depthwise_wgrad(where: dict[str, Any]) -> Calls:
    for label, arguments in conv_wgrad(where):
        if arguments[-1] == arguments[2].shape[0]:
            yield label, arguments[:-1]


def channel_moments(where: dict[str, Any]) -> Calls:
    for shape in ((70, SIZE), (3, SIZE, 7, 9)):
        for layout in (torch.contiguous_format, CHANNELS_LAST)[: len(shape) - 2 or 1]:
            pair = (images(shape, layout, **where), images(shape, layout, **where))
            yield f"{shape} {layout}", (*pair, 1, False)
            yield f"{shape} {layout} per sample", (*pair, 1, True)


def compact(where: dict[str, Any]) -> Calls:
    masks = [torch.rand(size, device=where["device"]) < 0.5 for size in (5, 1000, 1, 33)]
    yield "masks", (masks,)
    yield "velocities", ([torch.randn(SIZE, device=where["device"])], 0.3)


EXERCISES = {
    "pack_channels": pack_channels,
    "linear_wgrad": linear_wgrad,
    "linear_backward": linear_backward,
    "conv_wgrad": conv_wgrad,
    "conv_backward": conv_wgrad,
    "depthwise_wgrad": depthwise_wgrad,
    "channel_moments": channel_moments,
    "compact": compact,
}


def run(operator: str, device: str) -> list[str]:
    """Which (backend, dtype) computed ``operator`` as the specification does.

    Raises:
        AssertionError: one differed.
    """
    if operator.startswith("row_"):
        return [_row_steps(operator, device)]
    done = []
    for name in ("native", "triton"):
        for dtype, tolerance in TOLERANCE.items():
            torch.manual_seed(0)
            for label, arguments in EXERCISES[operator]({"device": device, "dtype": dtype}):
                spatial = arguments[0].dim() - 2 if operator.startswith("conv") else 0
                if (operator, name) not in backends.TABLE or backends.why_not(
                    name, device, dtype, spatial
                ):
                    continue
                ours = backends.TABLE[operator, name](*arguments)
                expected = getattr(reference, operator)(*arguments)
                torch.testing.assert_close(
                    ours,
                    expected,
                    rtol=tolerance,
                    atol=tolerance,
                    msg=lambda m, at=label: f"{at}: {m}",
                )
                done.append(f"{name} {dtype}")
    return sorted(set(done))


def _row_steps(operator: str, device: str) -> str:
    """Through the optimizer, which knows the operator's long list of arguments."""
    import neq_kernels as neq

    results = []
    for name in ("native", "torch"):
        torch.manual_seed(0)
        model = neq.convert(torch.nn.Sequential(torch.nn.Linear(29, SIZE))).to(device)
        model[0].set_active(list(INDEX))
        make = neq.optim.SGD if operator == "row_sgd" else neq.optim.AdamW
        options = {"momentum": 0.9} if operator == "row_sgd" else {}
        optimizer = make(model.parameters(), lr=0.1, model=model, **options)
        with backends.use(name):
            for _ in range(3):
                for p in model.parameters():
                    p.grad = torch.randn(p.shape, device=device)
                optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*results)
    return "native torch.float32"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("operator", choices=backends.OPERATORS)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args(argv)
    torch.backends.cudnn.allow_tf32 = False
    done = run(arguments.operator, arguments.device)
    if torch.device(arguments.device).type == "cuda":
        torch.cuda.synchronize()
    if not done:
        raise SystemExit(f"{arguments.operator}: no kernel of ours serves {arguments.device}")
    print(f"{arguments.operator}: {', '.join(done)}")


if __name__ == "__main__":
    main()
