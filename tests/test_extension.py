"""The extension as a binary: what it says of itself, exports and needs, and its stable ABI."""

import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neq_kernels import native, sources

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))
EXTENSION = native._module().__file__ if native.available() else ""
WITHOUT_ENDS = {"conv_wgrad_avx512.cpp.o"}


def test_build_info_says_what_was_built():
    info = native.build_info()
    assert info["torch_target"] == "2.10"
    assert (info["cuda"] is None) == bool(info["cuda_missing"])
    assert bool(info["cuda"]) == bool(info["cuda_architectures"])
    assert info["sources"] == sources.digest(ROOT / "csrc"), "rebuild: csrc/ has changed"
    assert "scalar" in info["cpu_isas"]
    assert native.cpu_isa() in info["cpu_isas"]
    assert "march=native" not in info["flags"]


def core_objects():
    """What the extension's core was compiled to, where it was built in this tree."""
    build = ROOT / "build" / f"native-{sys.implementation.cache_tag}"
    return sorted(build.glob("csrc/CMakeFiles/neq_core.dir/cpu/*.o"))


@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are x86's instruction sets")
@pytest.mark.skipif(not core_objects(), reason="needs build/: python setup.py build_ext --inplace")
def test_instruction_sets_are_used_where_they_are_asked_for_and_nowhere_else():
    """What a file named after no instruction set holds must run on any processor; so must what
    the linker may take from the others for all, like std::min."""
    for path in core_objects():
        code = subprocess.check_output(["objdump", "-d", "--no-show-raw-insn", path], text=True)
        wide = {width for width in ("ymm", "zmm") if f"%{width}" in code}
        masked = "%k1" in code
        if "_avx512." in path.name:
            assert "zmm" in wide, path.name
            # These loops have no ends: rows are staged in whole vectors.
            assert masked == (path.name not in WITHOUT_ENDS), path.name
        else:
            assert not masked, path.name
            assert wide == ({"ymm"} if "_avx2." in path.name else set()), path.name
        symbols = subprocess.check_output(["nm", "--defined-only", path], text=True)
        shared = {line.split()[-1] for line in symbols.splitlines() if " W " in line}
        for function in re.split(r"\n(?=[0-9a-f]+ <)", code):
            name = re.match(r"[0-9a-f]+ <(.+)>:", function)
            if name and name[1] in shared:
                assert not re.search(r"%[yz]mm|%k\d", function), f"{path.name}: {name[1]}"


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_only_the_module_and_the_c_abi_are_exported():
    output = subprocess.check_output(["nm", "-D", "--defined-only", EXTENSION], text=True)
    names = {line.split()[-1] for line in output.splitlines()}
    header = (ROOT / "csrc" / "include" / "neq" / "neq.h").read_text()
    declared = set(re.findall(r"^NEQ_API [^;]*?(neq_\w+)\(", header, re.MULTILINE))
    if not native.build_info()["cuda"]:
        declared = {name for name in declared if "_cuda" not in name}
    assert "neq_pack_channels_cpu" in declared
    assert names == {"PyInit__C"} | declared


@pytest.mark.skipif(not shutil.which("readelf"), reason="needs readelf")
def test_of_torch_only_the_stable_abis_library_is_linked():
    output = subprocess.check_output(["readelf", "-d", EXTENSION], text=True)
    needed = {line.split("[")[1].rstrip("]") for line in output.splitlines() if "NEEDED" in line}
    assert {name for name in needed if "torch" in name or "c10" in name} == {"libtorch_cpu.so"}
    assert not {name for name in needed if "gomp" in name or "python" in name}
    assert "RUNPATH" not in output
    assert "RPATH" not in output


def test_torch_abi_audit_finds_nothing_unstable():
    """Only symbols of LibTorch's stable ABI, and none that came after the oldest torch allowed."""
    pytest.importorskip("torch_abi_audit")
    command = [sys.executable, "-m", "torch_abi_audit.cli", EXTENSION, "--json", "--check", "torch"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    audited = json.loads(done.stdout)["extensions"][0]["torch"]
    assert audited["stable"]
    assert audited["stable_shim_count"] > 0
    assert audited["min_torch_version"].startswith(native.build_info()["torch_target"])
    assert not audited["unknown_shim_symbols"]
