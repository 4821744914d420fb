"""``python -m neq_kernels``: what is installed here, what runs, and why something does not."""

from __future__ import annotations

import argparse
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import torch

from neq_kernels import backends, native, sources

_DRIVER = Path("/proc/driver/nvidia/version")
Lines = Iterator[tuple[str, str]]


def versions() -> Lines:
    """This package and what it stands on."""
    yield "neq_kernels", _version("neq_kernels", "run from a source tree, not installed")
    yield "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "torch", f"{torch.__version__}, {_torch_flavour()}"
    yield "triton", _version("triton", "not installed; pip install triton")


def extension() -> Lines:
    """The native extension: how it was built, and what of it this machine can use."""
    if reason := native.why_not():
        yield "built", f"no: {reason}"
        return
    info = native.build_info()
    compiler = f"by {info['compiler']} ({info['flags']}) against torch {info['torch_built_with']}"
    yield "built", f"{compiler}, runs with torch >= {info['torch_target']}"
    yield "CPU", f"{native.cpu_isa()} in use; this machine has {', '.join(info['cpu_isas'])}"
    if info["cuda"]:
        yield "CUDA", f"{info['cuda']} for {', '.join(info['cuda_architectures'])}"
    if reason := native.cuda_why_not():
        yield "" if info["cuda"] else "CUDA", f"not usable: {reason}"


def gpus() -> Lines:
    """The GPUs that torch sees, and whether the extension has code for each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        yield "none", _why_no_gpu([str(warning.message) for warning in caught])
    for number in range(count):
        properties = torch.cuda.get_device_properties(number)
        capability = (properties.major, properties.minor)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        problem = native.cuda_why_not(capability) if native.available() else None
        note = f"; native: {problem}" if problem else ""
        yield str(number), f"{name}, compute capability {capability[0]}.{capability[1]}{note}"


def backend_lines() -> Lines:
    """Each backend, and why one is missing."""
    for line in backends.report().splitlines():
        name, _, text = line.partition(" ")
        yield name.rstrip(":"), text.strip()


def source_lines() -> Lines:
    """Whether these kernels are the ones that were last verified on a GPU."""
    built = native.build_info()["sources"] if native.available() else None
    tree = sources.tree()
    yield "GPU", sources.verdict(built)
    yield "digest", ", ".join(f"{part}/ {value}" for part, value in sources.current(built).items())
    if built and tree and built != sources.digest(tree):
        yield "stale", "csrc/ has changed since the extension was built; install again"


SECTIONS: dict[str, Callable[[], Lines]] = {
    "versions": versions,
    "extension": extension,
    "GPUs": gpus,
    "backends": backend_lines,
    "verified": source_lines,
}


def report() -> str:
    """Everything, for a person to read at a glance; a section that fails says so in its place."""
    lines = []
    for title, section in SECTIONS.items():
        lines.append(title)
        try:
            lines += [f"  {name:12s}{text}" for name, text in section()]
        except Exception as error:
            lines.append(f"  failed      {type(error).__name__}: {error}")
    return "\n".join(lines)


def _version(package: str, missing: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return missing


def _torch_flavour() -> str:
    if torch.version.hip:
        return f"a ROCm {torch.version.hip} build"
    return f"a CUDA {torch.version.cuda} build" if torch.version.cuda else "a CPU build"


def _why_no_gpu(complaints: list[str]) -> str:
    if complaints:
        return "; ".join(complaints)
    if torch.version.cuda:
        return "torch sees no GPU" if _DRIVER.exists() else "there is no NVIDIA driver"
    if _DRIVER.exists():
        return "there is an NVIDIA driver, but torch is a CPU build; install a CUDA build of torch"
    return "torch is a CPU build"


def main(arguments: list[str] | None = None) -> int:
    """Print the report, 0 also where everything is missing; or run the quick benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m neq_kernels",
        description="Say what is installed here, what runs, and why something does not.",
    )
    commands = parser.add_subparsers(dest="command", title="commands")
    bench = commands.add_parser("bench", help="what freezing gains in typical layers here")
    bench.add_argument("--device", help="torch's name of it (default: a GPU if there is one)")
    bench.add_argument("--seconds", type=float, default=0.15, help="per layer and share")
    chosen = parser.parse_args(arguments)
    if chosen.command == "bench":
        # Imported here: the report must come even where this cannot be.
        from neq_kernels import quick_bench

        quick_bench.run(chosen.device, chosen.seconds)
        return 0
    print(report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
