"""The GPU tests of the Triton kernels, run here by Triton's interpreter.

In processes of their own: whether kernels are interpreted is settled when triton is imported.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "tests" / "gpu").glob("test_triton_*.py"))


def test_there_are_kernels_to_interpret():
    assert FILES


@pytest.fixture(scope="module")
def interpreted():
    """All of them, two at a time, each on one thread."""
    pytest.importorskip("triton")
    with ThreadPoolExecutor(2) as pool:
        # The longest first.
        order = sorted(FILES, key=lambda file: file.stat().st_size, reverse=True)
        return dict(zip(order, pool.map(interpret, order), strict=True))


def interpret(file):
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", file]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "NEQ_BACKEND": ""},
        capture_output=True,
        text=True,
        timeout=1800,
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_interpreted(file, interpreted):
    result = interpreted[file]
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout, "an interpreted kernel needs no GPU"
