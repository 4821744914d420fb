"""The paper's table: FLOPs in three accountings, metric, frozen share, measured backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from torch import Tensor

import neq_kernels as neq
from examples.experiments.trainer import Run


@dataclass(frozen=True)
class Result:
    """One run, averaged over its epochs but for the metric, which is the last epoch's.

    ``paper``, ``wgrad``, ``backward`` are FLOPs per sample and step (`neq.flops`), ``probe`` those
    of one measurement of equilibrium; ``frozen`` is the share of all neurons, ``final_frozen`` that
    of the last epoch; ``backward_ms`` is the mean over epochs of the median step.
    """

    seed: int
    metric: float
    frozen: float
    final_frozen: float
    paper: float
    wgrad: float
    backward: float
    probe: float
    backward_ms: float
    probe_s: float


def result(run: Run) -> Result:
    """What a finished run comes to."""
    rows = run.rows
    image, _ = run.data.test.sample(0, None)
    sets = _sets(run.history)
    probe = 0 if run.tracker is None else len(run.data.probe)
    counted = neq.flops(run.model, image[None].to(run.device), sets, probe_samples=probe)
    return Result(
        seed=run.settings.seed,
        metric=rows[-1][run.recipe.metric],
        frozen=mean(row["frozen"] for row in rows),
        final_frozen=rows[-1]["frozen"],
        paper=counted.paper.sparse,
        wgrad=counted.wgrad.sparse,
        backward=counted.backward.sparse,
        probe=counted.probe,
        backward_ms=mean(row["backward_ms"] for row in rows),
        probe_s=mean(row["probe_s"] for row in rows),
    )


def _sets(history: Sequence[Mapping[str, Tensor]]) -> list[dict[str, neq.ActiveSet]]:
    return [
        {name: neq.ActiveSet.from_mask(mask) for name, mask in epoch.items()} for epoch in history
    ]


def table(title: str, metric: str, results: Sequence[Result]) -> str:
    """A line per seed, then mean and standard deviation."""
    head = (
        f"{'seed':>6} {'paper':>10} {'wgrad':>10} {'backward':>10} {'probe':>10} "
        f"{metric + ', %':>9} {'frozen':>7} {'at end':>7} {'backward, ms':>13} {'probe, s':>9}"
    )
    lines = [title, "       GFLOPs per sample, mean over epochs", head]
    lines += [_line(str(one.seed), _numbers(one)) for one in results]
    if len(results) > 1:
        columns = list(zip(*map(_numbers, results), strict=True))
        lines.append(_line("mean", [mean(column) for column in columns]))
        lines.append(_line("std", [stdev(column) for column in columns]))
    return "\n".join(lines)


def _numbers(one: Result) -> list[float]:
    giga = [one.paper / 1e9, one.wgrad / 1e9, one.backward / 1e9, one.probe / 1e9]
    percent = [100 * one.metric, 100 * one.frozen, 100 * one.final_frozen]
    return [*giga, *percent, one.backward_ms, one.probe_s]


def _line(name: str, n: Sequence[float]) -> str:
    return (
        f"{name:>6} {n[0]:10.4g} {n[1]:10.4g} {n[2]:10.4g} {n[3]:10.4g} {n[4]:9.2f} {n[5]:7.2f} "
        f"{n[6]:7.2f} {n[7]:13.2f} {n[8]:9.3f}"
    )
