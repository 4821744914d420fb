"""The plan on disk: merged, replaced whole, and never in training's way."""

import json
import multiprocessing
import os
import warnings

import pytest

from neq_kernels.planner import store


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("NEQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_warned", False)
    return tmp_path / "cache"


def test_round_trip_and_merge(home):
    assert store.read() == {}
    store.write("a", {"x": "packed", "y": "dense"})
    store.write("b", {"x": "dense"})
    store.write("a", {"y": "packed"})
    assert store.read() == {"a": {"x": "packed", "y": "packed"}, "b": {"x": "dense"}}
    assert sorted(path.name for path in home.iterdir()) == ["plan-v1.json", "plan-v1.json.lock"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"[]", b"3", b'{"version": 2, "decisions": {}}', b'{"version": 1}',
        b'{"version": 1, "decisions": []}', b'{"version": 1, "decisions": {"a": 3}}',
        b'{"version": 1, "decisions": {"a": {"x": 3}}}',
    ],
)  # fmt: skip
def test_a_foreign_file_is_set_aside(home, content):
    home.mkdir()
    (home / "plan-v1.json").write_bytes(content)
    with pytest.warns(RuntimeWarning, match="not a plan of this version.*set aside"):
        assert store.read() == {}
    aside = home / f"plan-v1.{os.getpid()}.unreadable"
    assert aside.read_bytes() == content
    store.write("a", {"x": "packed"})
    assert store.read() == {"a": {"x": "packed"}}


def test_a_foreign_file_is_not_merged_into(home):
    home.mkdir()
    (home / "plan-v1.json").write_text("nonsense")
    with pytest.warns(RuntimeWarning, match="set aside"):
        store.write("a", {"x": "packed"})
    assert store.read() == {"a": {"x": "packed"}}


def broken_folder(kind, home, monkeypatch):
    if kind == "a file in its place":
        home.write_text("")
    elif kind == "no such home":
        monkeypatch.delenv("NEQ_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(store.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("none")))
    else:
        full = OSError(28, "No space left on device")
        monkeypatch.setattr(store.json, "dump", lambda *a, **k: (_ for _ in ()).throw(full))


@pytest.mark.parametrize("kind", ["a file in its place", "no such home", "a full disk"])
def test_trouble_is_one_warning(home, monkeypatch, kind):
    broken_folder(kind, home, monkeypatch)
    with pytest.warns(RuntimeWarning, match=r"Training goes on.*NEQ_PLAN=off") as caught:
        store.write("a", {"x": "packed"})
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.write("a", {"x": "packed"})
    if kind == "a full disk":
        assert not list(home.glob("*.part"))


def write_many(worker):
    for i in range(20):
        store.write("machine", {f"{worker}-{i}": "packed"})


def test_many_processes_lose_nothing(home):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(write_many, range(4))
    content = json.loads((home / "plan-v1.json").read_text())
    assert len(content["decisions"]["machine"]) == 80


def test_a_lock_that_is_never_given_back_does_not_hang(home, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(store, "PATIENCE", 3)
    home.mkdir()
    with open(home / "plan-v1.json.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        store.write("a", {"x": "packed"})
    assert store.read() == {"a": {"x": "packed"}}


def test_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("NEQ_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.folder() == tmp_path / "neq_kernels"
