"""Table and figure of the runs of examples.evidence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.figure import STYLE

if TYPE_CHECKING:
    from examples.evidence import Finished

PAPERS_SETUP = (0.9, True)
NETWORKS = {"resnet": "ResNet-32", "vit": "small ViT"}
OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW"}
# Okabe and Ito's palette, told apart by colour-blind readers.
FAMILIES = {
    "dense": ("dense", "#000000", "s"),
    "neq": ("NEq", "#D55E00", "o"),
    "neq active": ('NEq, propagate="active"', "#0072B2", "^"),
    "random": ("Random, NEq's budget", "#999999", "D"),
    "budget": ("ParameterBudget", "#009E73", "v"),
    "time": ("TimeBudget", "#CC79A7", "P"),
}
CAPTION = """\
scikit-learn's 1,797 digits, 360 of them for testing. ResNet-32: 8 x 8 pixels, 16 epochs,
batch 128. ViT, two layers, 96 wide: 16 x 16 pixels, 10 epochs, batch 32, gradients clipped at 1.
The learning rate falls to a tenth after 40 and 60 % of the epochs. Mean and standard deviation over
seeds.
*frozen*: share of all neurons, mean over the epochs and in the last. *paper*, *wgrad*, *backward*:
FLOPs as a share of dense, by the three accountings of `neq.flops`. *time*: the backward's
processor time, one thread, as a share of a dense twin's, which takes its turn every fifth step. The
machine was shared with other work, which processor time leaves out but for caches and clock rates:
how far dense itself is from 100 says how much to make of differences.
"""


def write(folder: Path, done: Sequence[Finished]) -> str:
    """Write evidence.md and evidence.png into ``folder``; returns the table.

    Raises:
        ValueError: no dense run to compare with.
    """
    arms = compared(done)
    if not arms:
        raise ValueError(f"expected a dense run in {folder}/runs.csv to compare with, got none")
    text = "\n".join([CAPTION, *_tables(arms), _setups(done)])
    (folder / "evidence.md").write_text(text)
    figure(folder / "evidence.png", arms)
    return text


class Arm:
    """The runs of one method in one setting, each beside the dense run of its seed."""

    def __init__(self, runs: Sequence[Finished], dense: Mapping[int, Finished]) -> None:
        self.job = runs[0].job
        self.seeds = sorted(run.job.seed for run in runs)
        self.accuracies = [100 * run.result.metric for run in runs]
        self.frozen = mean(100 * run.result.frozen for run in runs)
        self.final_frozen = mean(100 * run.result.final_frozen for run in runs)

        def share(of: Callable[[Finished], float]) -> float:
            return 100 * mean(of(run) / of(dense[run.job.seed]) for run in runs)

        self.paper = share(lambda run: run.result.paper)
        self.wgrad = share(lambda run: run.result.wgrad)
        self.backward = share(lambda run: run.result.backward)
        self.times = [100 * run.result.backward_ms / run.dense_ms for run in runs]

    @property
    def family(self) -> str:
        return "neq active" if self.job.propagate == "active" else self.job.method

    @property
    def label(self) -> str:
        name = FAMILIES[self.family][0]
        if self.job.method in ("dense", "random"):
            return name
        return f"{name} {self.job.value:g}"

    @property
    def accuracy(self) -> str:
        spread = f" ± {stdev(self.accuracies):.2f}" if len(self.accuracies) > 1 else ""
        return f"{mean(self.accuracies):.2f}{spread}"


def compared(done: Sequence[Finished]) -> list[Arm]:
    """The arms with the usual momentum and decay, family by family."""
    usual = [run for run in done if (run.job.momentum, run.job.decay) == PAPERS_SETUP]
    dense: dict[tuple[str, str], dict[int, Finished]] = defaultdict(dict)
    for run in usual:
        if run.job.method == "dense":
            dense[run.job.network, run.job.optimizer][run.job.seed] = run
    groups: dict[object, list[Finished]] = defaultdict(list)
    for run in usual:
        if run.job.seed in dense[run.job.network, run.job.optimizer]:
            groups[replace(run.job, seed=0).key].append(run)
    arms = [
        Arm(runs, dense[runs[0].job.network, runs[0].job.optimizer]) for runs in groups.values()
    ]
    families = list(FAMILIES)
    return sorted(arms, key=lambda arm: (families.index(arm.family), arm.job.value or 0.0))


def _panels(arms: Sequence[Arm]) -> dict[tuple[str, str], list[Arm]]:
    panels: dict[tuple[str, str], list[Arm]] = defaultdict(list)
    for arm in arms:
        panels[arm.job.network, arm.job.optimizer].append(arm)
    return panels


def _tables(arms: Sequence[Arm]) -> list[str]:
    lines = []
    for (network, optimizer), members in sorted(_panels(arms).items()):
        lines += [
            f"## {NETWORKS[network]}, {OPTIMIZERS[optimizer]}",
            "",
            "| | seeds | accuracy, % | frozen, % | at end | paper, % | wgrad | backward | time |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {arm.label} | {len(arm.seeds)} | {arm.accuracy} | {arm.frozen:.1f} "
            f"| {arm.final_frozen:.1f} | {arm.paper:.1f} | {arm.wgrad:.1f} | {arm.backward:.1f} "
            f"| {mean(arm.times):.0f} |"
            for arm in members
        ]
        lines.append("")
    return lines


def _setups(done: Sequence[Finished]) -> str:
    """NEq at 1e-3 under SGD, by momentum and decay."""
    groups: dict[tuple[str, float, bool], list[Finished]] = defaultdict(list)
    for run in done:
        job = run.job
        if (job.method, job.optimizer, job.value, job.propagate) == ("neq", "sgd", 1e-3, "all"):
            groups[job.network, job.momentum, job.decay].append(run)
    lines = [
        "## NEq at 1e-3, SGD: momentum and learning-rate decay",
        "",
        "| | momentum | decay | seeds | accuracy, % | frozen, % | at end |",
        "|---|---|---|---|---|---|---|",
    ]
    for (network, momentum, decay), runs in sorted(groups.items()):
        arm = Arm(runs, {run.job.seed: run for run in runs})
        lines.append(
            f"| {NETWORKS[network]} | {momentum:g} | {'yes' if decay else 'no'} | {len(runs)} "
            f"| {arm.accuracy} | {arm.frozen:.1f} | {arm.final_frozen:.1f} |"
        )
    return "\n".join([*lines, ""])


def figure(path: Path, arms: Sequence[Arm]) -> None:
    """Accuracy against the backward's measured time, a panel per network and optimizer."""
    panels = _panels(arms)
    seeds = len({seed for arm in arms for seed in arm.seeds})
    with rc_context({**STYLE, "lines.linewidth": 1.5}):
        picture = Figure(figsize=(13, 5.5 * ((len(panels) + 1) // 2) + 1.4), layout="constrained")
        axes = picture.subplots((len(panels) + 1) // 2, 2, squeeze=False).flatten()
        for (setting, members), panel in zip(panels.items(), axes, strict=False):
            _panel(panel, members)
            panel.set_title(f"{NETWORKS[setting[0]]}, {OPTIMIZERS[setting[1]]}", loc="left")
        for unused in axes[len(panels) :]:
            unused.remove()
        handles = {
            label: handle
            for panel in axes[: len(panels)]
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        picture.legend(
            handles.values(), handles, loc="outside lower center", ncols=3, frameon=False
        )
        picture.suptitle(
            f"Digits: accuracy against time in the backward ({seeds} seed{'s' * (seeds > 1)}; "
            "beside each point: epsilon, share or wanted speed-up)",
            x=0.01, ha="left", fontsize=15,
        )  # fmt: skip
        picture.savefig(path, dpi=110)


def _panel(panel: Axes, arms: Sequence[Arm]) -> None:
    for family, (name, color, marker) in FAMILIES.items():
        members = [arm for arm in arms if arm.family == family]
        if not members:
            continue
        times = [mean(arm.times) for arm in members]
        accuracies = [mean(arm.accuracies) for arm in members]
        spread = [stdev(arm.accuracies) if len(arm.accuracies) > 1 else 0.0 for arm in members]
        panel.errorbar(
            times, accuracies, spread, color=color, marker=marker, markersize=9, capsize=3,
            linestyle="-" if family.startswith("neq") else "none", label=name,
        )  # fmt: skip
        for arm, time, accuracy in zip(members, times, accuracies, strict=True):
            if arm.job.method not in ("dense", "random"):
                panel.annotate(
                    f"{arm.job.value:g}", (time, accuracy), xytext=(7, 6),
                    textcoords="offset points", color=color, fontsize=11,
                )  # fmt: skip
    panel.axvline(100, color="#999999", linewidth=1, linestyle=":")
    panel.set_xlabel("backward, % of dense time")
    panel.set_ylabel("test accuracy, %")
