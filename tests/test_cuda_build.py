"""What nvcc made of the kernels, read back from the extension: code for every GPU, nothing spilled
to memory, and 16-byte accesses where they are promised. Needs no GPU."""

import os
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from neq_kernels import native

INFO = native.build_info() if native.available() else {"cuda": None, "cuda_missing": "not built"}
EXTENSION = native._module().__file__ if native.available() else ""
ARCHITECTURES = ["sm_75", "sm_80", "sm_90a", "sm_100", "compute_100"]

# What kernels do to device memory 16 bytes at a time, by patterns for their names. The first one
# counts; every kernel is listed, with nothing if it promises nothing.
LOAD, STORE = r"LDG\.E[\w.]*\.128\b", r"STG\.E[\w.]*\.128\b"
BY_16_BYTES = r"(float, 4|double, 2|__half, 8|__nv_bfloat16, 8)\b"
PROMISES: dict[str, list[str]] = {
    rf"(pack_planes|pack_long_runs)<{BY_16_BYTES}": [LOAD, STORE],
    rf"step_rows<[^<]*{BY_16_BYTES}": [LOAD, STORE],
    r"(pack_planes|pack_long_runs|step_rows)<": [],  # where addresses or strides do not allow it
    r"pack_rows<": [],  # gathers single channels
    r"step_strided<": [],
    rf"add_(rows|runs)<{BY_16_BYTES}": [LOAD],
    r"add_(rows|runs)<": [],  # where addresses or strides do not allow it
    r"(add_anything|compact_layers)\b": [],
    r"(add_products|store_rows)<": [],  # depthwise_wgrad loads single elements
    r"add_parts\b": [],
}


def binary_tool(name):
    """From PATH, from beside nvcc, or from triton's package."""
    folders = [Path(p).resolve().parent for p in [shutil.which("nvcc")] if p]
    folders += [Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda") / "bin"]
    if triton := find_spec("triton"):
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    return shutil.which(name) or next((str(f / name) for f in folders if (f / name).exists()), None)


CUOBJDUMP, NVDISASM = binary_tool("cuobjdump"), binary_tool("nvdisasm")
pytestmark = [
    pytest.mark.skipif(not INFO["cuda"], reason=f"built without CUDA: {INFO['cuda_missing']}"),
    pytest.mark.skipif(
        not (CUOBJDUMP and NVDISASM), reason="needs cuobjdump and nvdisasm; pip install triton"
    ),
]


@cache
def cuobjdump(*arguments):
    path = os.pathsep.join([str(Path(NVDISASM or "/").parent), os.environ["PATH"]])
    command = [CUOBJDUMP, *arguments, EXTENSION]
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_kernel(lines, start, parse):
    """(architecture, kernel's name as mangled) -> the sum of what parse finds in its lines."""
    found, architecture, counts = {}, None, Counter()
    for line in lines:
        if match := re.match(r"\s*arch = (sm_\w+)", line):
            architecture = match[1]
        elif match := re.match(start, line):
            counts = found[architecture, match[1]] = Counter()
        else:
            counts.update(parse(line))
    return found


def resources():
    """Bytes of STACK and LOCAL memory, among others."""
    return by_kernel(
        cuobjdump("--dump-resource-usage").splitlines(),
        r"\s*Function (\S+):",
        lambda line: {name: int(n) for name, n in re.findall(r"\b([A-Z]+):(\d+)", line)},
    )


def instructions():
    """How often each instruction occurs."""
    return by_kernel(
        cuobjdump("--dump-sass").splitlines(),
        r"\s*Function : (\S+)",
        lambda line: re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line),
    )


def test_there_is_code_for_every_architecture_in_every_file():
    expected = set(INFO["cuda_architectures"])
    if "NEQ_CUDA_ARCHITECTURES" not in os.environ:
        assert expected == set(ARCHITECTURES)
    elf = Counter(re.findall(r"\.(sm_\w+)\.cubin", cuobjdump("--list-elf")))
    ptx = Counter(re.findall(r"\.sm_(\w+)\.ptx", cuobjdump("--list-ptx")))
    assert set(elf) | {f"compute_{number}" for number in ptx} == expected
    assert len({*elf.values(), *ptx.values()}) == 1, "not the same for every source file"


def test_every_architecture_has_every_kernel():
    kernels = defaultdict(set)
    for architecture, kernel in resources():
        kernels[architecture].add(kernel)
    assert set(kernels) == {c for c in INFO["cuda_architectures"] if c.startswith("sm_")}
    assert len({frozenset(found) for found in kernels.values()}) == 1


def test_no_kernel_spills_or_uses_local_memory():
    used = resources()
    assert used
    assert not {key: use for key, use in used.items() if use["STACK"] or use["LOCAL"]}
    for key, counts in instructions().items():
        assert not [name for name in counts if re.match("LDL|STL", name)], key


@pytest.mark.skipif(not shutil.which("c++filt"), reason="needs c++filt (binutils)")
def test_wide_accesses_are_where_they_are_promised():
    found = instructions()
    mangled = "\n".join(kernel for _, kernel in found)
    names = subprocess.check_output(["c++filt"], input=mangled, text=True).splitlines()
    for (architecture, _), name, counts in zip(found, names, found.values(), strict=True):
        promises = [wide for kernel, wide in PROMISES.items() if re.search(rf"\b{kernel}", name)]
        assert promises, f"list what {name} promises in PROMISES"
        for wide in promises[0]:
            assert any(re.match(wide, instruction) for instruction in counts), (
                f"{name} on {architecture} has no {wide}: {sorted(counts)}"
            )
