"""The wheel and the source distribution: everything they need, and nothing else."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from alone import NO_FINDER

from neq_kernels import native, sources

ROOT = Path(__file__).parent.parent


def installed(*packages):
    """Not asked by importing: that of pip hides setuptools' distutils from what follows."""
    found = {(each.name or "").lower() for each in metadata.distributions()}
    return found.issuperset(packages)


pytestmark = [
    pytest.mark.skipif(
        not installed("pip", "setuptools", "wheel"), reason="needs pip, setuptools and wheel"
    ),
    pytest.mark.skipif(
        native.available()
        and not (installed("pybind11") and shutil.which("cmake") and shutil.which("ninja")),
        reason="needs cmake, ninja and pybind11",
    ),
]
MEGABYTES = 20


def run(*command, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked(*folders):
    """Files of these folders; all that git does not ignore, where there is git."""
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *folders]
    done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs git")
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built like the extension that is installed, without looking anything up on the network."""
    for leftover in (ROOT / "build").glob("lib*"):
        shutil.rmtree(leftover)
    folder = tmp_path_factory.mktemp("wheel")
    switches = {"NEQ_NATIVE": "0"}
    if native.available():
        switches = {"NEQ_NATIVE": "1", "NEQ_CUDA": "ON" if native.build_info()["cuda"] else "OFF"}
    command = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w")
    run(*command, folder, ROOT, **switches)
    return next(folder.glob("neq_kernels-*.whl"))


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(unpacked):
    files = {str(p.relative_to(unpacked)) for p in unpacked.rglob("*") if p.is_file()}
    inside = {name for name in files if ".dist-info/" not in name}
    extension = {name for name in inside if Path(name).match("neq_kernels/_C.*.so")}
    assert len(extension) == native.available()
    assert inside - extension == tracked("neq_kernels")


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < MEGABYTES * 1e6


@pytest.mark.skipif(not native.available(), reason=str(native.why_not()))
def test_the_wheel_holds_the_extension_that_the_other_tests_test(unpacked):
    shipped = next((unpacked / "neq_kernels").glob("_C.*.so"))
    installed = Path(native._module().__file__)
    assert shipped.read_bytes() == installed.read_bytes(), "rebuild: the sources have changed"


def test_an_unpacked_wheel_knows_its_sources(unpacked):
    (unpacked / "sitecustomize.py").write_text(NO_FINDER)
    told = run(
        sys.executable, "-m", "neq_kernels", PYTHONPATH=str(unpacked), PYTHONSAFEPATH="1"
    )  # fmt: skip
    assert "failed" not in told
    assert "not built" not in told or not native.available()
    if native.available():
        assert f"csrc/ {sources.digest(ROOT / 'csrc')}" in told
        assert "stale" not in told


def test_the_source_distribution_builds_everything(tmp_path):
    run(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path, "egg_info", "-e", tmp_path)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    needed = tracked("cmake", "csrc", "python", "neq_kernels")
    assert needed
    assert needed | {"CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"} <= shipped
