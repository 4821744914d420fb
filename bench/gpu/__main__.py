"""Build, test, watch and measure on a GPU, in parts that stop in time and go on where they stopped:
``make gpu-check``, ``make gpu-check PART=tests``, ``make gpu-check PART=plan``.

Uses the Python that runs it, with the torch, triton, cmake and nvcc found there; nothing is
downloaded. Results go to bench/results/<device>/. Ends with 0 when everything is done, 1 where
something failed, and 2 where time was up first: the same command then goes on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.gpu import build
from bench.gpu.parts import PARTS
from bench.gpu.place import ROOT, Place

SECONDS = 470.0
CODES = {"done": 0, "failed": 1, "unfinished": 2}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parsed(argv)
    if arguments.part == "plan" or arguments.dry_run:
        print(plan([arguments.part] if arguments.part in PARTS else list(PARTS), arguments.verbose))
        return 0
    if arguments.part == "build" and arguments.capability:
        major, _, minor = arguments.capability.partition(".")
        outcome = build.run((int(major), int(minor)))
        print(f"build: {outcome}", *outcome.failed, sep="\n")
        return CODES[outcome.status]
    if missing := no_gpu(arguments.device):
        raise SystemExit(f"gpu-check: {missing}")
    if arguments.part != "all":
        return run(arguments.part, arguments)
    codes = [call(name, arguments) for name in PARTS]
    return 1 if 1 in codes else max(codes)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--part", default="all", choices=["all", "plan", *PARTS])
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    parser.add_argument("--verbose", action="store_true", help="with --dry-run: every measurement")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that a part may take")
    parser.add_argument("--device", default="cuda", help="torch's name of it")
    parser.add_argument("--output", type=Path, help="folder (bench/results/<device> by default)")
    parser.add_argument("--retry", action="store_true", help="also what failed before")
    parser.add_argument("--capability", help="build for this compute capability, such as 9.0")
    return parser.parse_args(argv)


def no_gpu(device: str) -> str | None:
    """Why there is no such GPU, in one line; None where there is."""
    if torch.device(device).type != "cuda" or torch.cuda.is_available():
        return None
    seen = "is a CPU build" if torch.version.cuda is None else "sees none"
    return (
        f"expected an NVIDIA GPU, found none: torch {torch.__version__} {seen}. PART=plan says "
        "what would be run"
    )


def plan(names: Sequence[str], verbose: bool = False) -> str:
    """What each part would do."""
    lines = []
    for name in names:
        units = PARTS[name].plan()
        lines.append(f"{name}: {PARTS[name].does} ({len(units)} units)")
        shown = units if verbose else units[:3]
        lines += [f"  {unit}" for unit in shown]
        lines += ["  ..."] if len(shown) < len(units) else []
    return "\n".join(lines)


def run(name: str, arguments: argparse.Namespace) -> int:
    """One part in this process."""
    place = Place.of(arguments.device, arguments.seconds, arguments.output, arguments.retry)
    # Decisions of the planner are those of this check, and outlast a call of a part.
    os.environ.setdefault("NEQ_CACHE", str(place.folder / "progress" / "cache"))
    begun = time.monotonic()
    outcome = PARTS[name].run(place)
    if name == "build":  # it has changed what there is to write down
        place = Place.of(arguments.device, 0, arguments.output)
    place.record(name, outcome, time.monotonic() - begun)
    print(f"{name}: {outcome}", *outcome.failed, f"Written: {place.folder}", sep="\n")
    return CODES[outcome.status]


def call(name: str, arguments: argparse.Namespace) -> int:
    """One part in a process of its own, so that no kernel's error reaches the next."""
    options = ["--part", name, "--seconds", str(arguments.seconds), "--device", arguments.device]
    options += ["--output", str(arguments.output)] if arguments.output else []
    options += ["--retry"] if arguments.retry else []
    print(f"== {name}", flush=True)
    return subprocess.run([sys.executable, "-m", "bench.gpu", *options], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
