"""Triton kernels compiled ahead of time, for GPUs this machine need not have, and read.

``record`` runs a launcher on meta tensors, as if on a given GPU, and notes its launches;
``compiled`` specialises and compiles one as Triton's launcher would have. Then the tests look at
what came out: registers, spills and shared memory in the cubin, instructions in the PTX.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from neq_kernels.active import lists
from neq_kernels.kernels.device import KNOWN, Device

triton = __import__("pytest").importorskip("triton")

CACHE = Path(__file__).parent.parent / "build" / "triton"
OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
}
TARGETS = ("sm_80", "sm_90", "sm_100")
# Triton 3.4 and 3.6 were tried beside 3.7. They leave one or two values of a few float32 kernels on
# the stack, and copy the list of channels into shared memory again for every operand that waits for
# it; tensor cores and wide loads are the same.
RECENT = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7)
SPILLED = 0 if RECENT else 8
DEVICES = {f"sm_{d.capability[0]}{d.capability[1]}": d for d in KNOWN}


@dataclass(frozen=True)
class Launch:
    """One call of a kernel: its grid, its arguments and its options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__


Build = Callable[[Any], list[tuple[Launch, Device]]]


def compile_all(cases: Sequence[Any], build: Build) -> dict[Any, list[Compiled]]:
    """What the compiler makes of the launches of each case: each distinct one once, two at a time,
    remembered on disk.

    ``build`` is a function of a module, not of a class or another function: two processes call it.
    """
    os.environ.setdefault("TRITON_CACHE_DIR", str(CACHE))
    keys = {
        case: [(specialised(launch), device.capability) for launch, device in build(case)]
        for case in cases
    }
    jobs = {key: (case, place) for case, of in keys.items() for place, key in enumerate(of)}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        made = dict(zip(jobs, pool.map(partial(_compile, build), jobs.values()), strict=True))
    return {case: [made[key] for key in of] for case, of in keys.items()}


def _compile(build: Build, job: tuple[Any, int]) -> Compiled:
    case, place = job
    made = compiled(*build(case)[place])
    assert made.usage
    return made


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a launch for one GPU."""

    name: str
    ptx: str
    cubin: bytes
    shared: int
    capability: int

    @cached_property
    def usage(self) -> dict[str, int]:
        """REG, STACK, LOCAL and more, as cuobjdump finds them in the cubin."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
            text = subprocess.run(
                [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
            ).stdout
        return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", text)}

    @property
    def spilled(self) -> int:
        """Bytes of a thread's stack, where registers go that do not fit."""
        return self.usage["STACK"] + self.usage["LOCAL"]

    def count(self, pattern: str) -> int:
        """How often ``pattern`` occurs in the PTX."""
        return len(re.findall(pattern, self.ptx))

    def wide_loads(self) -> int:
        """Loads of 16 bytes from global memory: to registers, or straight to shared memory."""
        copied = self.count(r"cp\.async\.c[ag]\.shared\.global [^;]*, 0x10\b|cp\.async\.bulk")
        return self.count(r"ld\.global[.\w:]*\.v4\.b32") + copied

    def narrow_copies(self) -> int:
        """Copies to shared memory of less than 16 bytes."""
        return self.count(r"cp\.async\.ca\.shared\.global [^;]*, 0x[48]\b")

    def tensor_core(self) -> str:
        """The best matrix instruction in it: "tcgen05", "wgmma", "mma" or "none"."""
        for name, pattern in (
            ("tcgen05", r"tcgen05\.mma"),
            ("wgmma", r"wgmma\.mma_async"),
            ("mma", r"mma\.sync"),
        ):
            if self.count(pattern):
                return name
        return "none"


def record(device: Device, launcher: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Launch]:
    """The launches of ``launcher`` called with meta tensors for operands, as if on ``device``."""
    from triton.runtime.jit import JITFunction

    from neq_kernels.kernels import device as devices

    launches: list[Launch] = []

    def run(kernel: Any, *positional: Any, grid: Any, warmup: bool, **named: Any) -> None:
        assert not positional, "kernels are launched by keyword"
        options = {key: named.pop(key) for key in OPTIONS if key in named}
        launches.append(Launch(kernel, tuple(grid), named, options))

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(devices, "_describe", return_value=device),
    ):
        launcher(*args, **kwargs)
    return launches


def channels_of(size: int, count: int) -> Any:
    """The lists of the first ``count`` of ``size`` channels, on the meta device."""
    padded = torch.full((size,), -1, dtype=torch.int32)
    padded[:count] = torch.arange(count)
    channels = lists(padded, torch.tensor(count))
    return replace(channels, padded=channels.padded.to("meta"))


def specialised(launch: Launch) -> tuple[Any, ...]:
    """All that Triton compiles a kernel anew for: two launches alike in it share one binary."""
    arguments = [
        (_specialise(parameter, value), value if _constant(parameter, value) else None)
        for parameter in launch.kernel.params
        for value in [launch.arguments[parameter.name]]
    ]
    return launch.name, *arguments, *sorted(launch.options.items())


def _constant(parameter: Any, value: Any) -> bool:
    return bool(_specialise(parameter, value)[0] == "constexpr")


def compiled(launch: Launch, device: Device) -> Compiled:
    """Compile ``launch`` for ``device``, specialised as Triton's launcher would have."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        kind, aligned = _specialise(parameter, value)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[parameter.name] = 1 if isinstance(value, int) and value == 1 else value
        elif aligned:
            attributes[(place,)] = [["tt.divisibility", 16]]
    capability = 10 * device.capability[0] + device.capability[1]
    source = ASTSource(launch.kernel, signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    return Compiled(
        launch.name, made.asm["ptx"], made.asm["cubin"], made.metadata.shared, capability
    )


def _specialise(parameter: Any, value: Any) -> tuple[str, bool]:
    """The type of an argument, and whether it is a multiple of 16."""
    if parameter.is_constexpr or value is None or isinstance(value, str | bool):
        return "constexpr", False
    if isinstance(value, torch.Tensor):
        offset = value.storage_offset() * value.element_size()
        return f"*{TYPES[value.dtype]}", offset % 16 == 0
    if parameter.do_not_specialize:
        return "i32", False
    if value == 1:
        return "constexpr", False
    aligned = value % 16 == 0 and not parameter.do_not_specialize_on_alignment
    return ("i32" if abs(value) < 2**31 else "i64"), aligned
