"""Fill README's tables from bench/results/<device>/*.csv: python -m bench.readme [--check]

A table stands between ``<!-- bench:NAME FOLDER -->`` and ``<!-- /bench -->``: NAME is one of those
below, FOLDER is that of a device in bench/results/; ``bench:gpu *`` is every GPU that gpu-check has
measured, and empty where there is none. ``--check`` changes nothing and fails where
README says otherwise than the CSV.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from bench.gpu.tables import every_device
from bench.harness import RESULTS
from bench.never_slower import LIMIT, Result, last

README = RESULTS.parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- bench:(\w+) ([\w.-]+|\*) -->\n).*?(<!-- /bench -->)", re.DOTALL)
EXACT, PARTIAL = "ours, propagate=all", "ours, propagate=active"
# Layers of README's table, wide ones and losing ones; all others are in the CSV.
LAYERS = (
    "ViT-B MLP in", "ViT-B projection", "GPT-2 MLP out", "ResNet-50 middle 2",
    "ResNet-50 expand 3", "ResNet-32 stage 1", "ResNet-32 stage 3", "MobileNetV2 expand 3",
    "MobileNetV2 depthwise 3", "half-precision conv", "small MLP",
)  # fmt: skip
LAYOUTS = {"contiguous": "NCHW"}
Row = Mapping[str, str]
Rows = Sequence[Row]


def layers(rows: Rows) -> str:
    """Speed-ups of single layers' backward, and a sentence on all of the CSV's."""
    found: dict[tuple[str, str], dict[tuple[str, str], Row]] = defaultdict(dict)
    for row in rows:
        share = min((1.0, 0.5, 0.25, 0.1), key=lambda s: abs(s - float(row["active"])))
        found[_layer(row), row["layout"]][row["provider"], f"{share:.0%}"] = row
    lines = [
        _line("layer", "layout", "dense, ms", "100%", "50%", "of ceiling", "10%", "of ceiling",
              "path at 10%", "naive, 10%", '`"active"`, 10%'),
        _line(*["---"] * 11),
    ]  # fmt: skip
    for (name, layout), of in found.items():
        if not name.startswith(LAYERS):
            continue
        whole, half, tenth = (of[EXACT, share] for share in ("100%", "50%", "10%"))
        lines.append(
            _line(
                name, LAYOUTS.get(layout, layout), f"{float(tenth['dense_ms']):.2f}",
                _times(whole), _times(half), _percent(half), _times(tenth), _percent(tenth),
                tenth["path"].partition(" ")[0], _times(of.get(("naive", "10%"))),
                _times(of[PARTIAL, "10%"]),
            )
        )  # fmt: skip
    return "\n".join([*lines, "", _all_layers(rows)])


def _all_layers(rows: Rows) -> str:
    below_all = [r for r in rows if r["provider"] == EXACT and float(r["active"]) < 1]
    tenth = [float(r["ceiling_share"]) for r in below_all if float(r["active"]) < 0.15]
    slower = sorted((r for r in below_all if float(r["speedup"]) < LIMIT), key=_speedup)
    worst = ", ".join(
        f"{_layer(r)} ({LAYOUTS.get(r['layout'], r['layout'])}, {float(r['active']):.0%}) "
        f"{_times(r)}"
        for r in slower[:3]
    )
    worst = f"; the slowest are {worst}" if worst else ""
    return (
        f"All {len(below_all)} measurements below 100 %: {len(slower)} below {LIMIT}x{worst}. "
        f"Share of the ceiling at 10 %: median {median(tenth):.0%}, lowest {min(tenth):.0%}."
    )


def train(rows: Rows) -> str:
    """Whole backwards and steps: random sets at 50 and 10 %, half of the network as a prefix."""
    found: dict[tuple[str, str], dict[tuple[str, str, str, str], Row]] = defaultdict(dict)
    for row in rows:
        network, pattern = row["geometry"].split(" @ ")[0], row["geometry"].rpartition(", ")[2]
        key = row["operator"], pattern, f"{float(row['active']):.0%}", row["provider"]
        found[network, row["layout"]][key] = row
    lines = [
        _line("network", "layout", "dense, ms", "100%", "50%", "10%", "of ceiling", "naive, 10%",
              '`"active"`, 10%', "step, 10%", "first half frozen"),
        _line(*["---"] * 11),
    ]  # fmt: skip
    for (network, layout), of in found.items():

        def times(share: str, provider: str = EXACT, of: dict = of, **other: str) -> str:  # type: ignore[type-arg]
            operator = other.get("operator", "whole backward")
            return _times(of.get((operator, other.get("pattern", "random"), share, provider)))

        tenth = of["whole backward", "random", "10%", EXACT]
        lines.append(
            _line(
                network, LAYOUTS.get(layout, layout), f"{float(tenth['dense_ms']):.0f}",
                times("100%"), times("50%"), times("10%"), _percent(tenth),
                times("10%", "naive"), times("10%", PARTIAL),
                times("10%", operator="whole step"), times("50%", pattern="prefix"),
            )
        )  # fmt: skip
    return "\n".join(lines)


def memory(rows: Rows) -> str:
    """Peaks of a step, as shares of dense."""
    found: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        found[row["network"], row["layout"]][row["provider"]] = row
    names = [name for name in next(iter(found.values())) if name != "dense"]
    lines = [_line("network", "layout", "dense, MiB", *names), _line(*["---"] * (3 + len(names)))]
    for (network, layout), of in found.items():
        shares = [f"{float(of[name]['share']):.1%}" for name in names]
        dense = f"{float(of['dense']['peak_mib']):.0f}"
        lines.append(_line(network, LAYOUTS.get(layout, layout), dense, *shares))
    return "\n".join(lines)


def never_slower(rows: Rows) -> str:
    """A sentence: how many points, how many of them slower, which."""
    results = [_result(row) for row in rows]
    counted = last(results)
    first = [result for result in results if "again" not in result.run]
    slower = {result.point: result for result in counted if result.slower}
    text = (
        f"{len({r.point for r in counted})} points in {len({r.run for r in first})} fresh "
        f"processes: {len(slower)} slower than dense beyond noise after measuring again. At first "
        f"{_below([r.speed for r in first])} were below {LIMIT}x, dense against itself "
        f"{_below([r.itself for r in first])}."
    )
    worst = sorted(slower.values(), key=lambda result: result.speed)
    for result in worst[:5]:
        text += (
            f"\n- {result.speed:.2f}x ({result.extra_us:+.0f} us on {result.dense_ms:.2f} ms): "
            f"{result.geometry}, {result.dtype}, {LAYOUTS.get(result.layout, result.layout)}, "
            f"{result.active:.0%} active"
        )
    return text + (f"\n- and {len(worst) - 5} more" if len(worst) > 5 else "")


def _result(row: Row) -> Result:
    words = {"run", "geometry", "dtype", "layout", "path"}
    values = {name: row[name] if name in words else float(row[name]) for name in _FIELDS}
    return Result(**values)  # type: ignore[arg-type]


_FIELDS = tuple(Result.__dataclass_fields__)


def _below(speeds: Sequence[float]) -> str:
    return f"{sum(speed < LIMIT for speed in speeds) / len(speeds):.1%}"


TABLES: dict[str, Callable[[Rows], str]] = {
    "layers": layers,
    "train": train,
    "memory": memory,
    "never_slower": never_slower,
}


def fill(text: str, results: Path = RESULTS) -> str:
    """``text`` with the content of every block made anew.

    Raises:
        ValueError: a block of a name that is none of :data:`TABLES`, or one that is not closed.
        FileNotFoundError: there is no such CSV file.
    """

    def block(found: re.Match[str]) -> str:
        begin, name, folder, end = found.groups()
        if (name, folder) == ("gpu", "*"):
            measured = every_device(results)
            return f"{begin}{measured}\n{end}" if measured else f"{begin}{end}"
        if name not in TABLES:
            raise ValueError(f"bench:{name}: expected one of {', '.join(TABLES)}")
        with (results / folder / f"{name}.csv").open(newline="") as file:
            return f"{begin}{TABLES[name](list(csv.DictReader(file)))}\n{end}"

    if len(BLOCK.findall(text)) != text.count("<!-- bench:"):
        raise ValueError("README: expected <!-- /bench --> after every <!-- bench:NAME FOLDER -->")
    return BLOCK.sub(block, text)


def _layer(row: Row) -> str:
    name = row["geometry"].rpartition("(")[2].rstrip(")")
    return name if row["dtype"] == "float32" else f"{name}, {row['dtype']}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _speedup(row: Row) -> float:
    return float(row["speedup"])


def _times(row: Row | None) -> str:
    return f"{float(row['speedup']):.2f}x" if row else ""


def _percent(row: Row) -> str:
    return f"{float(row['ceiling_share']):.0%}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where README is not up to date")
    arguments = parser.parse_args(argv)
    text = README.read_text(encoding="utf-8")
    filled = fill(text)
    if arguments.check:
        if filled != text:
            raise SystemExit("README.md differs from bench/results; run python -m bench.readme")
        return
    README.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
