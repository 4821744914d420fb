"""The digest of the kernels' sources, and what it says about the last verification on a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from neq_kernels import sources

ROOT = Path(__file__).parent.parent
FACTS = {"date": "2026-11-21", "commit": "1234567", "torch": "2.13.0", "driver": "580.1"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A source tree with one Triton kernel and one header."""
    for name in ("neq_kernels/kernels/a.py", "csrc/include/neq/neq.h"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(sources, "PACKAGE", tmp_path / "neq_kernels")
    monkeypatch.setattr(sources, "VERIFIED", tmp_path / "neq_kernels" / "verified.json")
    return tmp_path


def write(folder, **files):
    for name, content in files.items():
        folder.mkdir(exist_ok=True)
        (folder / name.replace("_", ".")).write_text(content)
    return sources.digest(folder)


def test_a_digest_sees_every_name_and_every_byte(tmp_path):
    one = write(tmp_path / "one", a_cu="x", b_h="y")
    assert len(one) == 16
    assert one == write(tmp_path / "two", a_cu="x", b_h="y")
    assert one != write(tmp_path / "three", a_cu="x", b_h="z")
    assert one != write(tmp_path / "four", a_cu="x", c_h="y")
    assert one != write(tmp_path / "five", a_cu="xy", b_h="")
    assert one != write(tmp_path / "six", a_cu="x", b_h="y", c_cuh="")


def test_a_digest_ignores_what_is_no_source(tmp_path):
    one = write(tmp_path / "one", a_cu="x")
    assert one == write(tmp_path / "two", a_cu="x", a_o="object", a_pyc="bytecode")
    (tmp_path / "two" / "folder.h").mkdir()
    assert one == sources.digest(tmp_path / "two")


def test_a_missing_folder_counts_as_empty(tmp_path):
    assert sources.digest(tmp_path / "none") == sources.digest(tmp_path)


def test_cmake_runs_it_as_a_script():
    command = [sys.executable, "-I", sources.__file__, str(ROOT / "csrc")]
    output = subprocess.check_output(command, text=True)
    assert output.strip() == sources.digest(ROOT / "csrc")


def test_what_was_built_goes_before_what_lies_in_the_tree(package):
    assert sources.current()["csrc"] == sources.digest(package / "csrc")
    assert sources.current("built")["csrc"] == "built"
    (package / "csrc/include/neq/neq.h").unlink()
    assert "csrc" not in sources.current()
    assert sources.current("built")["csrc"] == "built"


def test_nothing_verified(package):
    assert sources.verdict() == "never verified on a GPU"
    sources.VERIFIED.write_text("{}")
    assert sources.verdict() == "never verified on a GPU"


def test_verified_until_a_source_changes(package):
    sources.record("NVIDIA H200", FACTS)
    assert sources.verdict() == "verified on NVIDIA H200 (2026-11-21, commit 1234567)"
    sources.record("NVIDIA T4", {**FACTS, "date": "2026-11-20"})
    assert sources.verdict().count("verified on") == 2
    assert json.loads(sources.VERIFIED.read_text())["NVIDIA T4"]["driver"] == "580.1"

    (package / "csrc/include/neq/neq.h").write_text("2")
    since = "since NVIDIA H200 (2026-11-21, commit 1234567)"
    assert sources.verdict() == f"not verified: csrc/ changed {since}"
    (package / "neq_kernels/kernels/a.py").write_text("2")
    assert sources.verdict() == f"not verified: csrc/ and kernels/ changed {since}"
    sources.record("NVIDIA T4", FACTS)
    assert sources.verdict() == "verified on NVIDIA T4 (2026-11-21, commit 1234567)"


def test_another_build_of_the_extension_is_not_verified(package):
    sources.record("NVIDIA H200", FACTS, "built")
    assert sources.verdict("built").startswith("verified on NVIDIA H200")
    assert sources.verdict("older").startswith("not verified: csrc/ changed since NVIDIA H200")


def test_the_record_of_this_repository_can_be_read():
    for device, facts in sources.verified().items():
        assert device
        assert set(FACTS) | {"csrc", "kernels", "cuda"} <= set(facts)
