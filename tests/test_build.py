"""What setup.py, CMake and the package say when something is missing."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from alone import copy_without_extension

ROOT = Path(__file__).parent.parent
COMPILERS = ("cc", "c++", "gcc", "g++", "as", "ld", "ar", "ranlib")

needs_cmake = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("ninja")), reason="needs cmake and ninja on PATH"
)


def _tools(tmp_path, *names, **scripts):
    """A PATH that holds these programs, those of them that exist here, and shell scripts."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in names:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def _run(*command, **environment):
    """Exit status, and the output with all white space as single blanks."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, " ".join(done.stdout.split())


def _build(tmp_path, python=(sys.executable,), **environment):
    pytest.importorskip("setuptools", "77")
    return _run(
        *python,
        "setup.py",
        "-q",
        "build_ext",
        "-b",
        tmp_path / "lib",
        "-t",
        tmp_path,
        **environment,
    )


@pytest.fixture
def bare_python(tmp_path):
    """An interpreter without torch that can import setuptools and pybind11."""
    for name in ("setuptools", "pybind11"):
        pytest.importorskip(name)
    base = sysconfig.get_paths(vars={"base": sys.base_prefix, "platbase": sys.base_prefix})
    if Path(base["purelib"], "torch").exists():
        pytest.skip("the base interpreter has a torch of its own")
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("setuptools", "_distutils_hack", "pybind11"):
        found = Path(importlib.util.find_spec(name).submodule_search_locations[0])
        for part in (found, *found.parent.glob(f"{name}-*.dist-info")):
            (packages / part.name).symlink_to(part)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    environment = {"PYTHONPATH": str(packages), "HOME": str(tmp_path)}
    return tmp_path / "venv" / "bin" / "python", environment


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("NEQ_NATIVE", "yes", "0 or 1"), ("NEQ_CUDA", "1", "AUTO or ON")],
)
def test_wrong_switches_are_refused(tmp_path, name, value, expected):
    status, output = _build(tmp_path, **{name: value})
    assert status
    assert f"neq_kernels: {name}: expected {expected}" in output
    assert f"got '{value}'." in output


def test_neq_native_0_needs_no_tool(tmp_path):
    status, output = _build(tmp_path, NEQ_NATIVE="0", PATH=str(tmp_path))
    assert (status, output) == (0, "")
    assert not (tmp_path / "lib").exists()


def test_missing_cmake_is_named(tmp_path):
    status, output = _build(tmp_path, PATH=str(tmp_path))
    assert status
    assert "expected cmake on PATH, found none" in output
    assert "pip install cmake ninja pybind11" in output
    assert "NEQ_NATIVE=0" in output


def test_missing_torch_is_named(tmp_path, bare_python):
    python, environment = bare_python
    tools = _tools(tmp_path, cmake="exit 1", ninja="exit 1")
    status, output = _build(tmp_path, [python], **environment, PATH=tools)
    assert status
    assert "expected torch >= 2.10 installed for" in output
    assert "First pip install torch" in output


def test_an_isolated_build_finds_the_interpreters_torch(tmp_path, bare_python):
    """Like pip's, this sitecustomize takes the interpreter's own packages out of sys.path."""
    python, environment = bare_python
    hide = "import sys; sys.path[:] = [p for p in sys.path if not p.endswith('site-packages')]"
    Path(environment["PYTHONPATH"], "sitecustomize.py").write_text(hide)
    home = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (home / "torch").mkdir()
    (home / "torch" / "version.py").write_text("raise ImportError('must not be imported')")
    tools = _tools(tmp_path, cmake='echo "$@"; exit 1', ninja="exit 1")
    status, output = _build(tmp_path, [python], **environment, PATH=tools)
    assert status
    assert f"-DNEQ_TORCH_DIR={home / 'torch'}" in output
    assert "the native build failed, see above. If a compiler has changed" in output
    assert "NEQ_NATIVE=0 installs without" in output


def _configure(tmp_path, path, *options, **environment):
    build = ["-S", ROOT, "-B", tmp_path / "build", "-G", "Ninja"]
    names = ("CXX", "CUDACXX", "CUDAHOSTCXX", "CUDA_HOME", "CUDA_PATH")
    only_on_path = "-DCMAKE_IGNORE_PATH=/usr/local/cuda/bin"
    cleared = dict.fromkeys(names, "")
    return _run("cmake", *build, only_on_path, *options, **{**cleared, "PATH": path, **environment})


@needs_cmake
def test_missing_compiler_is_named(tmp_path):
    status, output = _configure(tmp_path, _tools(tmp_path, "cmake", "ninja"))
    assert status
    assert "expected a C++17 compiler, found none" in output
    assert "apt-get install g++" in output
    assert "NEQ_NATIVE=0" in output


NVCC = "case $1 in --version) echo 'Cuda compilation tools, release {}, V0';; esac"
NO_NVCC = "found no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda"
REFUSED = "(#error -- unsupported GNU version! gcc versions later than 9 are not supported!)"


@needs_cmake
@pytest.mark.parametrize(
    ("cuda", "nvcc", "expected"),
    [
        ("AUTO", None, f"neq_kernels: {NO_NVCC}, building CPU-only"),
        ("ON", None, f"NEQ_CUDA=ON: {NO_NVCC}. Install the CUDA toolkit"),
        ("AUTO", NVCC.format("11.8"), "expected CUDA >= 12.0, found 11.8 at"),
        ("ON", NVCC.format("11.8"), "NEQ_CUDA=ON: expected CUDA >= 12.0, found 11.8 at"),
        ("AUTO", f"echo '{REFUSED[1:-1]}' >&2; exit 1", f"{REFUSED}, building CPU-only"),
        ("ON", f"echo '{REFUSED[1:-1]}' >&2; exit 1", f"{REFUSED}. Install a CUDA toolkit that"),
        ("OFF", "exit 0", "expected the folder of an installed torch, got '/nowhere'"),
        ("on", "exit 0", "NEQ_CUDA: expected AUTO, ON or OFF, got 'on'"),
    ],
)
def test_cuda_is_decided_by_the_compiler(tmp_path, cuda, nvcc, expected):
    tools = _tools(tmp_path, "cmake", "ninja", *COMPILERS, **({"nvcc": nvcc} if nvcc else {}))
    status, output = _configure(tmp_path, tools, f"-DNEQ_CUDA={cuda}", "-DNEQ_TORCH_DIR=/nowhere")
    assert status
    assert expected in output
    goes_on = "expected the folder of an installed torch, got '/nowhere'" in output
    assert goes_on == (cuda in ("AUTO", "OFF"))


@needs_cmake
def test_the_environment_names_another_nvcc_and_its_host_compiler(tmp_path):
    (tmp_path / "other").write_text('#!/bin/sh\necho "error: $*"; exit 1\n')
    (tmp_path / "other").chmod(0o755)
    tools = _tools(tmp_path, "cmake", "ninja", *COMPILERS, nvcc=NVCC.format("13.0"))
    names = {"CUDACXX": str(tmp_path / "other"), "CUDAHOSTCXX": "/opt/older-g++"}
    status, output = _configure(tmp_path, tools, "-DNEQ_CUDA=ON", **names)
    assert status
    assert f"{tmp_path / 'other'} does not compile with /opt/older-g++ (error: " in output
    assert "-ccbin /opt/older-g++" in output
    assert "set CUDAHOSTCXX to one it supports; NEQ_CUDA=OFF builds for the CPU only" in output


@needs_cmake
@pytest.mark.parametrize("wrong", ["sm_90a", "all", "90a-reel", "75,80", "70", "90;;100"])
def test_architectures_that_nvcc_does_not_know_are_refused(tmp_path, wrong):
    nvcc = """case $1 in
        --version) echo 'release 13.0, V0';;
        --list-gpu-arch) printf 'compute_75\\ncompute_80\\ncompute_90\\ncompute_100\\n';;
    esac"""
    tools = _tools(tmp_path, "cmake", "ninja", *COMPILERS, nvcc=nvcc)
    status, output = _configure(tmp_path, tools, f"-DNEQ_CUDA_ARCHITECTURES={wrong}")
    assert status
    assert "NEQ_CUDA_ARCHITECTURES: expected native, or a list such as 80-real;90a-real" in output
    assert "of what CUDA 13.0 compiles for (75;80;90;100), got" in output


@needs_cmake
def test_a_torch_without_the_stable_abi_is_refused(tmp_path):
    (tmp_path / "version.py").write_text("__version__ = '2.9.1+cpu'\n")
    tools = _tools(tmp_path, "cmake", "ninja", *COMPILERS)
    status, output = _configure(tmp_path, tools, "-DNEQ_CUDA=OFF", f"-DNEQ_TORCH_DIR={tmp_path}")
    assert status
    assert "expected torch >= 2.10" in output
    assert "found 2.9.1+cpu" in output


@needs_cmake
def test_the_c_abi_under_the_sanitizers():
    """tests/cpp: no torch, no Python, buffers of exactly the right size."""
    build = ROOT / "build" / "cpp"
    commands = [
        ("cmake", "-S", ROOT / "tests" / "cpp", "-B", build, "-G", "Ninja"),
        ("cmake", "--build", build),
        (
            "ctest",
            "--test-dir",
            build,
            "--parallel",
            "2",
            "--output-on-failure",
            "--no-tests=error",
        ),
    ]
    for command in commands:
        status, output = _run(*command)
        assert status == 0, output


def _package_without_extension(tmp_path, **files):
    copy_without_extension(tmp_path)
    for name, content in files.items():
        (tmp_path / "neq_kernels" / name).write_text(content)
    code = "import neq_kernels.native as n; print(n.available(), n.why_not())"
    return _run(sys.executable, "-c", code, PYTHONPATH=str(tmp_path), PYTHONSAFEPATH="1")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (None, "the native extension was not built (installed with NEQ_NATIVE=0"),
        ("_C.cpython-36-x.so", "was built for another Python (_C.cpython-36-x.so)"),
        (
            f"_C{sysconfig.get_config_var('EXT_SUFFIX')}",
            f"does not load (built for torch >= 2.10, this is torch {torch.__version__})",
        ),
    ],
)
def test_import_works_without_the_extension_and_says_why(tmp_path, file, expected):
    status, output = _package_without_extension(tmp_path, **({file: "no ELF"} if file else {}))
    assert status == 0
    assert output.startswith("False ")
    assert expected in output
    assert "rebuild with pip install --no-build-isolation" in output
