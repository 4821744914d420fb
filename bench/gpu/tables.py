"""README's tables of GPUs, from the CSV files that gpu-check has written; nothing where it has not
been run."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.gpu.place import SUMMARY

EXACT, PARTIAL = "ours, propagate=all", "ours, propagate=active"
SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)
Row = Mapping[str, str]


def every_device(results: Path) -> str:
    """The tables of every device that gpu-check has measured, by name."""
    folders = sorted(path.parent for path in results.glob(f"*/{SUMMARY}"))
    return "\n\n".join(text for folder in folders if (text := of_device(folder)))


def of_device(folder: Path) -> str:
    facts = json.loads((folder / SUMMARY).read_text())
    tables = [
        make(list(csv.DictReader((folder / name).read_text().splitlines())))
        for name, make in (("layers.csv", layers), ("train.csv", steps))
        if (folder / name).exists()
    ]
    if not tables:
        return ""
    head = (
        f"On an {facts['device']}, torch {facts['torch']}, triton {facts['triton']}, CUDA "
        f"{facts['cuda']}, commit {facts['commit']}:"
    )
    return "\n\n".join([head, *tables])


def layers(rows: Sequence[Row]) -> str:
    """A line per layer: its whole backward by active share, the rest at a tenth."""
    found: dict[tuple[str, str, str], dict[tuple[str, str], Row]] = defaultdict(dict)
    for row in rows:
        if row["operator"] == "layer backward":
            name = row["geometry"].rpartition("(")[2].rstrip(")")
            key = name, row["dtype"], row["layout"]
            found[key][row["provider"], _share(row)] = row
    heads = ["layer", "dtype", "dense, ms", *(f"{share:.0%}" for share in SHARES), "of ceiling",
             "of roofline", "path", "masked", "naive", '`"active"`']  # fmt: skip
    lines = [_line(*heads), _line(*["---"] * len(heads))]
    for (name, dtype, _), of in found.items():
        tenth = of.get((EXACT, "10%"))
        if tenth is None:
            continue
        speeds = [_times(of.get((EXACT, f"{share:.0%}"))) for share in SHARES]
        roofline = float(tenth["roofline_ms"]) / float(tenth["ms"])
        others = [_times(of.get((who, "10%"))) for who in ("masked", "naive", PARTIAL)]
        lines.append(
            _line(name, dtype, f"{float(tenth['dense_ms']):.3f}", *speeds,
                  f"{float(tenth['ceiling_share']):.0%}", f"{roofline:.0%}", tenth["path"], *others)
        )  # fmt: skip
    return "\n".join(lines)


def steps(rows: Sequence[Row]) -> str:
    """A line per network, eager and compiled: whole backwards by active share, steps at a tenth."""
    found: dict[tuple[str, str, str], dict[tuple[str, str, str], Row]] = defaultdict(dict)
    for row in rows:
        if row["path"]:  # of ours, which says how all ran
            key = row["geometry"].partition(" @ ")[0], row["dtype"], row["path"]
            found[key][row["operator"], row["provider"], _share(row)] = row
    heads = ["network", "dtype", "mode", "dense backward, ms", *(f"{s:.0%}" for s in SHARES),
             "of ceiling, 10%", '`"active"`, 10%', "of ceiling, 10%", "step, 10%"]  # fmt: skip
    lines = [_line(*heads), _line(*["---"] * len(heads))]
    for (name, dtype, mode), of in found.items():
        tenth, partial = (of.get(("whole backward", who, "10%")) for who in (EXACT, PARTIAL))
        if tenth is None or partial is None:
            continue
        speeds = [_times(of.get(("whole backward", EXACT, f"{s:.0%}"))) for s in SHARES]
        lines.append(
            _line(name, dtype, mode, f"{float(tenth['dense_ms']):.1f}", *speeds,
                  f"{float(tenth['ceiling_share']):.0%}", _times(partial),
                  f"{float(partial['ceiling_share']):.0%}",
                  _times(of.get(("whole step", EXACT, "10%"))))
        )  # fmt: skip
    return "\n".join(lines)


def _share(row: Row) -> str:
    return f"{min(SHARES, key=lambda share: abs(share - float(row['active']))):.0%}"


def _times(row: Row | None) -> str:
    return f"{float(row['speedup']):.2f}x" if row else ""


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
