"""Calls CMake for the native extension. Everything static is in pyproject.toml."""

import os
import shutil
import site
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, __version__, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
WITHOUT = "NEQ_NATIVE=0 installs without the native extension."


def choice(name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(name) or default
    if value not in allowed:
        raise SystemExit(f"neq_kernels: {name}: expected {' or '.join(allowed)}, got {value!r}.")
    return value


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SystemExit(
            f"neq_kernels: expected {name} on PATH, found none. With --no-build-isolation, "
            f"first pip install cmake ninja pybind11 setuptools. {WITHOUT}"
        )
    return path


def torch_folder() -> Path:
    """The installed torch, not imported: an isolated build sees only its own packages, so the
    interpreter's and the user's site-packages are searched too."""
    spec = find_spec("torch")
    homes = [Path(spec.origin).parent] if spec and spec.origin else []
    base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
    for variables in (None, base):
        paths = sysconfig.get_paths(vars=variables)
        homes += [Path(paths["purelib"], "torch"), Path(paths["platlib"], "torch")]
    homes.append(Path(site.getusersitepackages(), "torch"))
    for home in homes:
        if (home / "version.py").exists():
            return home
    raise SystemExit(
        f"neq_kernels: expected torch >= 2.10 installed for {sys.executable}, found none. First "
        f"pip install torch; if it is there, pip install --no-build-isolation finds it. {WITHOUT}"
    )


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        cuda = choice("NEQ_CUDA", "AUTO", ("AUTO", "ON", "OFF"))
        architectures = os.environ.get("NEQ_CUDA_ARCHITECTURES", "")
        cmake, ninja, torch = tool("cmake"), tool("ninja"), torch_folder()
        import pybind11

        build = ROOT / "build" / f"native-{sys.implementation.cache_tag}"
        configure = [
            cmake, "-S", ROOT, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DNEQ_CUDA={cuda}", f"-DNEQ_CUDA_ARCHITECTURES={architectures}",
            f"-DNEQ_TORCH_DIR={torch}",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]  # fmt: skip
        for command in (configure, [cmake, "--build", build]):
            if subprocess.run(command).returncode:
                raise SystemExit(
                    "neq_kernels: the native build failed, see above. If a compiler has changed "
                    f"since the last build, first remove {build}. {WITHOUT}"
                )
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(next(build.glob("_C*.so")), target)


if int(__version__.partition(".")[0]) < 77:
    raise SystemExit(
        f"neq_kernels: expected setuptools >= 77, found {__version__}. First pip install -U "
        "setuptools, or leave out --no-build-isolation."
    )
native = choice("NEQ_NATIVE", "1", ("0", "1")) == "1"
setup(
    ext_modules=[Extension("neq_kernels._C", sources=[])] if native else [],
    cmdclass={"build_ext": CMakeBuild},
)
