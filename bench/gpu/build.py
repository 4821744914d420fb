"""Builds the extension in place for one kind of GPU, by the tools at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.gpu.place import ROOT, Outcome

# In a process of its own, as this one may hold the extension from before.
CHECK = """
import sys
from neq_kernels import native
info = {} if native.why_not() else native.build_info()
print(native.why_not() or info)
if sys.argv[1] not in info.get("cuda_architectures", []):
    sys.exit(f"expected code for {sys.argv[1]} in the extension: {info.get('cuda_architectures')}")
"""


def architecture(capability: tuple[int, int]) -> str:
    """CMake's name for machine code of this compute capability alone; Hopper's own instructions
    come with the a."""
    major, minor = capability
    return f"{major}{minor}{'a' if capability == (9, 0) else ''}-real"


def environment(capability: tuple[int, int]) -> dict[str, str]:
    """Of the build: CUDA insisted on, for this GPU, with the tools that lie beside this Python."""
    beside = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "NEQ_CUDA": "ON",
        "NEQ_CUDA_ARCHITECTURES": architecture(capability),
        "PATH": os.pathsep.join([beside, os.environ.get("PATH", "")]),
    }


def command() -> list[str]:
    return [sys.executable, "setup.py", "build_ext", "--inplace"]


def run(capability: tuple[int, int]) -> Outcome:
    """Build, and ask a process of its own whether there is code for that GPU."""
    built = subprocess.run(command(), cwd=ROOT, env=environment(capability))
    if built.returncode:
        return Outcome(failed=[f"{' '.join(command())} ended with {built.returncode}, see above"])
    wanted = "sm_" + architecture(capability).removesuffix("-real")
    check = subprocess.run(
        [sys.executable, "-c", CHECK, wanted], cwd=ROOT, capture_output=True, text=True
    )
    print(check.stdout, end="", flush=True)
    if check.returncode:
        return Outcome(failed=[check.stderr.strip()])
    return Outcome(1, note=f"machine code for {wanted}")
