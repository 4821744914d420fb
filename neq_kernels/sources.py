"""Which kernels these are: a digest of their sources, and the GPUs on which that digest passed.

``csrc/`` is digested when the extension is built (:func:`neq_kernels.native.build_info`), so that
an installed wheel knows it too; the Triton kernels are digested where they lie. ``verified.json``,
beside this file, holds what was last verified: device name -> the digests, commit, date, and the
versions of torch, CUDA and the driver. CMake runs this file as a script, without torch.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent
VERIFIED = PACKAGE / "verified.json"
SUFFIXES = (".c", ".cpp", ".cu", ".cuh", ".h", ".py", ".txt")


def digest(folder: Path) -> str:
    """16 hexadecimal digits over the names and contents of the sources below ``folder``.

    The same for the same sources, wherever the folder lies and whatever else it holds. A folder
    that is not there counts as empty.
    """
    digests = hashlib.sha256()
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    for name, path in sorted(files.items()):
        if path.suffix in SUFFIXES and path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digests.update(f"{name}\n{content}\n".encode())
    return digests.hexdigest()[:16]


def tree() -> Path | None:
    """The ``csrc/`` that this package lies beside, in a source tree; None where it is installed."""
    folder = PACKAGE.parent / "csrc"
    return folder if (folder / "include" / "neq" / "neq.h").is_file() else None


def current(built: str | None = None) -> dict[str, str]:
    """The digests of what runs here: ``csrc``, as ``built`` into the extension or else as it lies
    in the source tree, if there is one; and ``kernels``, the Triton kernels."""
    if built is None and (folder := tree()):
        built = digest(folder)
    digests = {"kernels": digest(PACKAGE / "kernels")}
    return digests if built is None else {**digests, "csrc": built}


def record(device: str, facts: dict[str, str], built: str | None = None) -> None:
    """Write down that the current kernels passed their tests on ``device``, with ``facts``: the
    commit, the date, and the versions of torch, CUDA and the driver."""
    found = verified()
    found[device] = {**current(built), **facts}
    VERIFIED.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")


def verified() -> dict[str, dict[str, str]]:
    """What was last verified, by device; empty where nothing was."""
    return dict(json.loads(VERIFIED.read_text())) if VERIFIED.is_file() else {}


def verdict(built: str | None = None) -> str:
    """Whether the current kernels are those last verified on a GPU, in one line for a person."""
    found, here = verified(), current(built)
    if not found:
        return "never verified on a GPU"
    same = [device for device, facts in found.items() if here.items() <= facts.items()]
    if same:
        return "; ".join(f"verified on {device} ({_when(found[device])})" for device in same)
    last = max(found, key=lambda device: found[device].get("date", ""))
    parts = [part for part, value in here.items() if found[last].get(part) != value]
    changed = " and ".join(f"{part}/" for part in sorted(parts))
    return f"not verified: {changed} changed since {last} ({_when(found[last])})"


def _when(facts: dict[str, str]) -> str:
    return f"{facts.get('date', 'undated')}, commit {facts.get('commit', 'unknown')}"


if __name__ == "__main__":
    print(digest(Path(sys.argv[1])))
