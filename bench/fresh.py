"""Fresh processes with a plan of their own, and training until the planner has settled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

import neq_kernels as neq

# Steps that the planner may take to settle every geometry; it needs about 20.
PATIENCE = 100
ROOT = Path(__file__).parent.parent


def run_fresh(module: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """What ``python -m module *arguments --fresh FILE`` writes into its file: a list in JSON.

    The process measures by a plan that starts empty, in a folder that is removed afterwards.
    """
    with TemporaryDirectory() as folder:
        output = Path(folder) / "rows.json"
        environment = {**os.environ, "NEQ_CACHE": f"{folder}/cache", "NEQ_PLAN": "measure"}
        command = [sys.executable, "-m", module, *arguments, "--fresh", str(output)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        rows: list[dict[str, Any]] = json.loads(output.read_text())
        return rows


def settled(model: nn.Module) -> bool:
    """Whether the planner compares nothing any more in a converted ``model``."""
    return not any("being compared" in row.path for row in neq.report(model).layers)


def settle(model: nn.Module, step: Callable[[int], object], patience: int = PATIENCE) -> int:
    """Call ``step(0)``, ``step(1)``, ... until ``model`` is settled.

    Returns:
        How many steps that took: ``patience`` where it never was.
    """
    for done in range(patience):
        step(done)
        if settled(model):
            return done + 1
    return patience
