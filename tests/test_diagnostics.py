"""``python -m neq_kernels`` tells the truth and exits with 0, whatever is missing or broken."""

import os
import subprocess
import sys
import sysconfig
import warnings
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from alone import copy_without_extension

from neq_kernels import __main__ as diagnostics
from neq_kernels import native, sources

needs_extension = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))


def told(**environment):
    environment = {**os.environ, "NEQ_BACKEND": "", **environment}
    done = subprocess.run(
        [sys.executable, "-m", "neq_kernels"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def rows(section):
    return dict(section())


def test_every_section_is_there_and_fits_a_screen():
    report = told()
    titles = [line for line in report.splitlines() if not line.startswith(" ")]
    assert titles == ["versions", "extension", "GPUs", "backends", "verified"]
    assert report.count("\n") < 40
    assert "failed" not in report
    assert f"torch       {torch.__version__}, " in report
    assert f"GPU         {sources.verdict(sources.current().get('csrc'))}" in report


@needs_extension
def test_it_says_what_was_built_and_what_runs():
    report, info = told(NEQ_CPU_ISA="scalar"), native.build_info()
    assert f"built       by {info['compiler']}" in report
    assert f"CPU         scalar in use; this machine has {', '.join(info['cpu_isas'])}" in report
    if info["cuda"]:
        assert f"CUDA        {info['cuda']} for sm_" in report
    else:
        assert f"built without CUDA: {info['cuda_missing']}" in report


@needs_extension
def test_a_wrong_switch_spoils_only_what_it_concerns():
    report = told(NEQ_CPU_ISA="nonsense")
    assert "failed      ValueError: cpu_isa: expected one this machine has" in report
    assert f"torch       {torch.__version__}, " in report
    assert "GPUs\n  " in report


@pytest.mark.parametrize("broken", [False, True])
def test_without_an_extension_or_with_one_that_does_not_load(tmp_path, broken):
    copy_without_extension(tmp_path)
    if broken:
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        (tmp_path / "neq_kernels" / f"_C{suffix}").write_text("no ELF")
    report = told(PYTHONPATH=str(tmp_path), PYTHONSAFEPATH="1")
    reason = "does not load" if broken else "was not built"
    assert f"built       no: the native extension {reason}" in report
    assert report.count(reason) >= 2, "the backend says it too"
    assert "GPU         never verified" in report or "GPU         not verified" in report
    assert "failed" not in report


def test_without_triton_and_uninstalled(monkeypatch):
    def version(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(diagnostics.metadata, "version", version)
    assert rows(diagnostics.versions)["triton"] == "not installed; pip install triton"
    assert rows(diagnostics.versions)["neq_kernels"] == "run from a source tree, not installed"


def gpus(monkeypatch, **fakes):
    for name, value in fakes.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return rows(diagnostics.gpus)


def test_gpus_are_listed_with_what_the_extension_lacks(monkeypatch):
    t4 = SimpleNamespace(name="Tesla T4", total_memory=15 << 30, major=7, minor=5)
    monkeypatch.setattr(native, "available", lambda: True)
    monkeypatch.setattr(native, "cuda_why_not", lambda capability: f"no code for {capability}")
    found = gpus(
        monkeypatch,
        is_available=lambda: True,
        device_count=lambda: 2,
        get_device_properties=lambda number: t4,
    )
    expected = "Tesla T4, 15 GiB, compute capability 7.5; native: no code for (7, 5)"
    assert found == {"0": expected, "1": expected}


def _warns():
    warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
    return False


@pytest.mark.parametrize(
    ("cuda", "driver", "available", "reason"),
    [
        (None, False, lambda: False, "torch is a CPU build"),
        (None, True, lambda: False, "there is an NVIDIA driver, but torch is a CPU build; install"),
        ("13.0", False, lambda: False, "there is no NVIDIA driver"),
        ("13.0", True, lambda: False, "torch sees no GPU"),
        ("13.0", True, _warns, "The NVIDIA driver on your system is too old"),
    ],
)
def test_why_there_is_no_gpu(monkeypatch, tmp_path, cuda, driver, available, reason):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(diagnostics, "_DRIVER", tmp_path if driver else tmp_path / "none")
    assert gpus(monkeypatch, is_available=available)["none"].startswith(reason)


def test_a_stale_extension_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "tree", lambda: tmp_path)
    monkeypatch.setattr(native, "available", lambda: True)
    monkeypatch.setattr(native, "build_info", lambda: {"sources": "0123456789abcdef"})
    found = rows(diagnostics.source_lines)
    assert "0123456789abcdef" in found["digest"]
    assert found["stale"].startswith("csrc/ has changed since the extension was built")


CODES = ["sm_75", "sm_80", "sm_90a", "sm_100", "compute_100"]


@pytest.mark.parametrize(
    ("capability", "driver", "codes", "reason"),
    [
        ((7, 5), 13000, CODES, None),
        ((8, 0), 13000, CODES, None),
        ((8, 9), 13000, CODES, None),
        ((9, 0), 13000, CODES, None),
        ((10, 3), 13000, CODES, None),
        ((12, 1), 13010, CODES, None),
        ((12, 1), 13000, ["sm_90a", "compute_90a"], "not for compute capability 12.1"),
        ((9, 0), 13000, ["sm_80", "compute_80"], None),
        ((8, 0), 13000, ["sm_86"], "NEQ_CUDA_ARCHITECTURES=80"),
        ((7, 0), 13000, CODES, "built for sm_75, sm_80, sm_90a, sm_100, compute_100, not for"),
        ((10, 3), 13000, ["sm_100f"], None),
        ((9, 0), 0, CODES, "there is no NVIDIA driver"),
        (
            (9, 0),
            12060,
            CODES,
            "built with CUDA 13.0, but the NVIDIA driver serves CUDA up to 12.6",
        ),
        (None, 13000, [], None),
    ],
)
def test_why_cuda_operators_cannot_run(monkeypatch, capability, driver, codes, reason):
    info = {"cuda": "13.0", "cuda_missing": None, "cuda_architectures": codes}
    module = SimpleNamespace(cuda_versions=lambda: (13000, driver), build_info=lambda: info)
    monkeypatch.setattr(native, "_load", lambda: (module, None))
    found = native.cuda_why_not(capability)
    assert found is None if reason is None else reason in found


def test_ptx_of_a_newer_compiler_than_the_driver_is_of_no_use(monkeypatch):
    info = {"cuda": "13.1", "cuda_missing": None, "cuda_architectures": CODES}
    module = SimpleNamespace(cuda_versions=lambda: (13010, 13000), build_info=lambda: info)
    monkeypatch.setattr(native, "_load", lambda: (module, None))
    assert native.cuda_why_not((9, 0)) is None
    assert "not for compute capability 12.0" in native.cuda_why_not((12, 0))


def test_a_build_without_cuda_says_why(monkeypatch):
    info = {"cuda": None, "cuda_missing": "found no nvcc", "cuda_architectures": []}
    module = SimpleNamespace(cuda_versions=lambda: (0, 0), build_info=lambda: info)
    monkeypatch.setattr(native, "_load", lambda: (module, None))
    assert "was built without CUDA: found no nvcc; rebuild with" in native.cuda_why_not()
    monkeypatch.setattr(native, "_load", lambda: (None, "not built"))
    assert native.cuda_why_not() == "not built"


@needs_extension
def test_the_driver_is_asked_without_a_gpu():
    runtime, driver = native._module().cuda_versions()
    assert (runtime > 0) == bool(native.build_info()["cuda"])
    assert driver >= 0
