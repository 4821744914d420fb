"""Is a converted layer ever slower than torch's own? python -m bench.never_slower

Each point is a layer, a layout, a dtype and a share of active neurons. The converted layer, its
planner settled, takes turns with torch's layer, which zeroes the frozen rows of its gradients
after its backward, as dense training with frozen neurons must; torch's layer runs twice, so that
what the machine cannot tell apart shows. Everything is measured in two fresh processes, each with
an empty plan; points below 0.97 are measured again there, for longer and with the plan as it was
decided.

Speeds are dense ms / ours ms, of the backward and of forward and backward together. A point counts
as slower when the upper 95 % bound of its backward's speed (bootstrap over rounds) stays below
0.97; where a dense backward takes less than 0.3 ms, up to 20 us more count as equal.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import neq_kernels as neq
from bench.cases import CASES, Case, conv, linear
from bench.fresh import run_fresh, settle
from bench.harness import input_sets, results_path, shifts, write_csv

SHARES = (0.9, 0.5, 0.1)
LIMIT, SMALL_MS, FREE_US = 0.97, 0.3, 20.0
ROUNDS = 9, 200
RESAMPLES = 2000
bf16 = torch.bfloat16
# Beside the layers that every benchmark measures: the small, the narrow and the half-precise.
MORE: list[Case] = [
    *conv("16 channels, one image", (1, 16, 32, 32), 16, 3, "batch 1"),
    *conv("depthwise, one image", (1, 96, 28, 28), 96, 3, "batch 1", depthwise=True),
    *conv("1x1, half precision", (2, 64, 14, 14), 64, 1, "bf16", dtype=bf16),
    *linear("tiny, 16 tokens", 16, 32, 32, "tiny"),
    *linear("tiny, 256 tokens", 256, 64, 64, "tiny"),
    *linear("head of ResNet-50, one image", 1, 2048, 1000, "batch 1"),
    *linear("columns, half precision", 256, 128, 384, "bf16", kind="columns", dtype=bf16),
    *linear("tokens, half precision", 512, 256, 64, "bf16", dtype=bf16),
]
QUICK = ("ResNet-32 stage 1", "ResNet-50 expand 3", "MobileNetV2 depthwise 14", "small MLP",
         "one token", "half-precision MLP")  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One measurement of one point. Speeds are dense ms / ours ms, bounds one-sided 95 %.

    ``itself``: the same of torch's layer against itself. ``extra_us``: what ours takes more than
    dense; ``extra_low_us``: its lower bound. ``step``: forward and backward together.
    """

    run: str
    geometry: str
    dtype: str
    layout: str
    active: float
    path: str
    rounds: int
    dense_ms: float
    ours_ms: float
    speed: float
    low: float
    high: float
    itself: float
    extra_us: float
    extra_low_us: float
    step_dense_ms: float
    step_speed: float
    step_high: float
    step_extra_us: float
    step_extra_low_us: float

    @property
    def point(self) -> tuple[str, str, str, float]:
        return self.geometry, self.dtype, self.layout, self.active

    @property
    def slower(self) -> bool:
        """Whether the backward is slower beyond noise, and beyond what counts as equal."""
        return _slower(self.high, self.dense_ms, self.extra_low_us)

    @property
    def step_slower(self) -> bool:
        """The same of forward and backward together."""
        return _slower(self.step_high, self.dense_ms, self.step_extra_low_us)


def _slower(high: float, dense_ms: float, extra_low_us: float) -> bool:
    return high < LIMIT and not (dense_ms < SMALL_MS and extra_low_us <= FREE_US)


class Contender:
    """A layer and its graphs, one per set of inputs: a backward finds what its forward, some steps
    ago, has left, with the cache cold."""

    def __init__(
        self, layer: nn.Module, inputs: Sequence[Tensor], gradients: Sequence[Tensor],
        needs_dx: bool, after: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        self.layer, self.gradients, self.after = layer, gradients, after
        self.inputs = [x.detach().requires_grad_(needs_dx) for x in inputs]
        self.waiting: list[Tensor | None] = [layer(x) for x in self.inputs]

    def step(self, i: int) -> tuple[float, float]:
        """Milliseconds of the backward of set ``i``, and with a forward that makes its graph."""
        i %= len(self.inputs)
        output, self.waiting[i] = self.waiting[i], None
        assert output is not None
        self.layer.zero_grad()
        self.inputs[i].grad = None
        begun = time.perf_counter()
        output.backward(self.gradients[i])
        if self.after:
            self.after()
        backward = time.perf_counter() - begun
        del output
        begun = time.perf_counter()
        self.waiting[i] = self.layer(self.inputs[i])
        forward = time.perf_counter() - begun
        return backward * 1e3, (backward + forward) * 1e3


def points(quick: bool = False) -> list[tuple[Case, float]]:
    """Every layer at every share."""
    cases = [case for case in CASES + MORE if not quick or case.name in QUICK]
    return [(case, share) for case in cases for share in SHARES]


def contenders(case: Case, share: float) -> dict[str, Contender]:
    """Torch's layer, itself once more, and the converted one with its planner settled."""
    count = max(1, round(share * case.neurons))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(case.neurons, generator=generator)[:count]
    active = neq.ActiveSet.from_index(chosen, case.neurons)
    layer, example = case.layer(), case.example()
    output = layer(example).detach()
    sets = input_sets(example.nbytes + output.nbytes)
    inputs = [torch.randn_like(example) for _ in range(sets)]
    gradients = [torch.randn_like(output) for _ in range(sets)]
    needs_dx = case.arguments["inputs"] > 3  # what has 3 channels is an image, a network's input
    made = {}
    for name in ("dense", "dense again"):
        plain = deepcopy(layer)
        after = _zeroing(plain, active.frozen, int(case.kind == "columns"))
        made[name] = Contender(plain, inputs, gradients, needs_dx, after)
    ours = neq.convert(deepcopy(layer))
    made["ours"] = Contender(ours, inputs, gradients, needs_dx)
    warm_up(made)  # in training, too, memory has been used before anything is frozen
    ours.set_active(active)
    settle(ours, made["ours"].step)
    warm_up(made)  # graphs from before are not those of a settled layer
    return made


def warm_up(made: Mapping[str, Contender]) -> None:
    """A step of every contender with every set of inputs."""
    for one in made.values():
        for i in range(len(one.inputs)):
            one.step(i)


def _zeroing(layer: nn.Module, frozen: Tensor, dim: int) -> Callable[[], None] | None:
    if not len(frozen):
        return None
    weight, bias = layer.weight, layer.bias

    def zero() -> None:
        weight.grad.index_fill_(dim, frozen, 0)
        bias.grad.index_fill_(0, frozen, 0)

    return zero


def measure(case: Case, share: float, seconds: float, run: str) -> Result:
    """One point, for about ``seconds``."""
    made = contenders(case, share)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    ahead = dict(zip(made, shifts(len(made), len(made["ours"].inputs)), strict=True))
    names, done, end = list(made), 0, time.perf_counter() + seconds
    while done < ROUNDS[0] or (done < ROUNDS[1] and time.perf_counter() < end):
        first = done % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(made[name].step(done + ahead[name]))
        done += 1
    dense, again, ours = (torch.tensor(found, dtype=torch.float64).T for found in times.values())
    path = neq.report(made["ours"].layer).layers[0].path
    return Result(
        run, f"{case.kind} {case.geometry}", str(case.dtype).removeprefix("torch."), case.layout,
        share, path.split(":")[0].split(",")[0], done,
        float(dense[0].quantile(0.5)), float(ours[0].quantile(0.5)),
        *compare(dense[0], ours[0])[:3],
        compare(dense[0], again[0])[0],
        *compare(dense[0], ours[0])[3:],
        float(dense[1].quantile(0.5)),
        *(compare(dense[1], ours[1])[i] for i in (0, 2, 3, 4)),
    )  # fmt: skip


def compare(dense: Tensor, ours: Tensor) -> tuple[float, float, float, float, float]:
    """Medians compared, of milliseconds ``[rounds]`` each: the speed dense / ours, its lower and
    upper 95 % bound, how many us ours takes more, and the lower bound of that.

    Bounds are one-sided, from a bootstrap that draws rounds, so that what hit a whole round hits
    both.
    """
    rounds = len(dense)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(rounds, (RESAMPLES, rounds), generator=generator)
    of_dense, of_ours = dense[drawn].quantile(0.5, dim=1), ours[drawn].quantile(0.5, dim=1)
    speeds, extras = of_dense / of_ours, (of_ours - of_dense) * 1e3
    one, other = float(dense.quantile(0.5)), float(ours.quantile(0.5))
    low, high = float(speeds.quantile(0.05)), float(speeds.quantile(0.95))
    return one / other, low, high, (other - one) * 1e3, float(extras.quantile(0.05))


def measure_all(chosen: Sequence[tuple[Case, float]], seconds: float, run: str) -> list[Result]:
    """Every point, and then again, three times as long, those below the limit."""
    torch.manual_seed(0)
    results = [measure(*point, seconds, run) for point in tqdm(chosen, desc=f"run {run}")]
    below = [
        point
        for point, result in zip(chosen, results, strict=True)
        if min(result.speed, result.step_speed) < LIMIT
    ]
    for point in tqdm(below, desc=f"run {run}, again"):
        results.append(measure(*point, 3 * seconds, f"{run} again"))
    return results


def last(results: Sequence[Result]) -> list[Result]:
    """Of each point and run, the measurement that counts: the last."""
    return list({(result.run.split()[0], *result.point): result for result in results}.values())


def summary(results: Sequence[Result]) -> str:
    """How many points are slower, which, and how far dense is from itself."""
    counted = last(results)
    number = len({result.point for result in counted})
    first = [result for result in results if "again" not in result.run]
    lines = [f"{number} points in {len({result.run for result in first})} processes:"]
    for word, slower in (
        ("backward", [r for r in counted if r.slower]),
        ("forward and backward", [r for r in counted if r.step_slower]),
    ):
        lines.append(
            f"  {word}: slower than dense beyond noise: {len({r.point for r in slower})} points"
        )
        for r in slower:
            speed, extra = (
                (r.speed, r.extra_us) if word == "backward" else (r.step_speed, r.step_extra_us)
            )
            lines.append(
                f"    run {r.run}: {speed:.3f}x, {extra:+.0f} us on {r.dense_ms:.3f} ms, "
                f"{r.active:.0%} active, {r.dtype} {r.layout} {r.geometry}, {r.path}"
            )
    below = [sum(value < LIMIT for value in of) / len(first) for of in _scatter(first)]
    lines.append(
        f"  below {LIMIT} in the first measurement: ours {below[0]:.1%} of the points, dense "
        f"against itself {below[1]:.1%}"
    )
    return "\n".join(lines)


def _scatter(results: Sequence[Result]) -> tuple[list[float], list[float]]:
    return [r.speed for r in results], [r.itself for r in results]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few layers, one process, a minute")
    parser.add_argument("--seconds", type=float, default=0.5, help="per point")
    parser.add_argument("--runs", type=int, default=2, help="fresh processes")
    parser.add_argument("--output", type=Path, help="CSV file (bench/results/... by default)")
    parser.add_argument("--fresh", type=Path, help=argparse.SUPPRESS)  # what a process writes
    parser.add_argument("--run", default="1", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    if arguments.fresh:
        found = measure_all(points(arguments.quick), arguments.seconds, arguments.run)
        arguments.fresh.write_text(json.dumps([asdict(result) for result in found]))
        return
    options = ["--seconds", str(arguments.seconds), *(["--quick"] if arguments.quick else [])]
    results = [
        Result(**row)
        for run in range(1 if arguments.quick else arguments.runs)
        for row in run_fresh("bench.never_slower", [*options, "--run", str(run + 1)])
    ]
    path = arguments.output or results_path("never_slower")
    write_csv(path, results)
    print(f"{summary(results)}\nWritten: {path}")


if __name__ == "__main__":
    main()
