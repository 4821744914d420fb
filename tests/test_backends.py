import os
import re
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from alone import copy_without_extension

import neq_kernels as neq
from neq_kernels import backends, kernels, native, reference
from neq_kernels.backends import OPERATORS, ORDER, TABLE, resolve, use, why_not

ROOT = Path(__file__).parent.parent
needs_native = pytest.mark.skipif(not native.available(), reason="native extension not built")


@pytest.fixture(autouse=True)
def nothing_requested():
    use(None)
    yield
    use(None)


def python(code, root=ROOT, **environment):
    """Run ``code`` in a fresh interpreter, with the package in the folder ``root``."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_operator_has_every_backend():
    triton = {(operator, "triton") for operator in backends.TRITON_OPERATORS}
    both = {(operator, name) for operator in OPERATORS for name in ("native", "torch")}
    assert set(TABLE) == both | triton
    assert set(ORDER) == {name for _, name in TABLE}
    for operator in OPERATORS:
        assert TABLE[operator, "torch"] is getattr(reference, operator)


@needs_native
def test_the_first_able_backend_is_taken():
    assert resolve("pack_channels", "cpu", torch.float32)[0] == "native"
    assert resolve("pack_channels", "cpu", torch.complex64)[0] == "torch"
    assert resolve("pack_channels", "meta", torch.float32)[0] == "torch"


@pytest.mark.parametrize("operator", OPERATORS)
def test_use_as_context_gives_the_choice_back(operator):
    before = resolve(operator, "cpu", torch.float32)
    with use("torch"):
        assert resolve(operator, "cpu", torch.float32) == ("torch", TABLE[operator, "torch"])
        assert "requested: torch" in backends.report()
    assert resolve(operator, "cpu", torch.float32) == before
    assert "requested: none" in backends.report()


def test_use_is_permanent_without_with_and_contexts_nest():
    use("torch")
    with use(None):
        assert "requested: none" in backends.report()
    assert resolve("pack_channels", "cpu", torch.float32)[0] == "torch"
    with pytest.raises(ZeroDivisionError), use(None):
        1 / 0  # noqa: B018
    assert "requested: torch" in backends.report()


@pytest.mark.parametrize("wrong", ["cuda", "", "Torch", 3])
def test_an_unknown_backend_changes_nothing(wrong):
    use("torch")
    with pytest.raises(
        ValueError, match=rf"backend: expected one of triton, native, torch, got {wrong!r}"
    ):
        use(wrong)
    assert "requested: torch" in backends.report()


@needs_native
def test_a_request_that_cannot_be_served_raises_with_the_reason():
    use("native")
    with pytest.raises(RuntimeError, match=r"native: serves float32.*not torch\.complex64.*use\("):
        resolve("linear_wgrad", "cpu", torch.complex64)
    with pytest.raises(RuntimeError, match=r"native: serves the cpu and cuda, not mps"):
        resolve("linear_wgrad", "mps", torch.float32)


@needs_native
def test_native_serves_cuda_where_it_was_built_for_it(monkeypatch):
    monkeypatch.setattr(native, "cuda_why_not", lambda capability: "built without CUDA")
    assert why_not("native", "cuda") == "built without CUDA"
    assert "native   available (cpu)" in backends.report()
    monkeypatch.setattr(native, "cuda_why_not", lambda capability: None)
    assert why_not("native", "cuda", torch.bfloat16) is None
    assert why_not("native", "cuda", torch.int8).startswith("serves float32")
    assert "native   available (cpu and cuda)" in backends.report()
    use("native")
    assert resolve("pack_channels", "cuda", torch.float32)[0] == "native"
    monkeypatch.setattr(backends, "NATIVE_ON_CUDA", backends.GRADIENTS)
    with pytest.raises(RuntimeError, match=r"native: has no row_sgd on cuda"):
        resolve("row_sgd", "cuda", torch.float32)


def test_triton_says_why_it_is_missing(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(kernels, "_why_no_triton", lambda: "triton is not installed; pip install")
    with pytest.raises(RuntimeError, match=r"backend=triton: not available here: .*pip install"):
        use("triton")
    assert "triton   triton is not installed" in backends.report()
    monkeypatch.setattr(kernels, "_why_no_triton", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA; install a CUDA build" in why_not("triton")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch sees no CUDA device; check nvidia-smi" in why_not("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert why_not("triton") == (
        "Tesla T4 has compute capability 7.5, triton needs 8.0; the other backends serve it"
    )


def test_triton_is_taken_for_what_it_serves(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(kernels, "_why_no_triton", lambda: None)
    monkeypatch.setattr(kernels, "_why_no_gpu", lambda: None)
    backends.use(None)
    assert resolve("linear_wgrad", "cuda", torch.bfloat16)[0] == "triton"
    assert resolve("linear_wgrad", "cuda", torch.float64)[0] != "triton"
    assert resolve("linear_wgrad", "cpu", torch.float32)[0] != "triton"
    assert resolve("pack_channels", "cuda", torch.float32)[0] != "triton"
    assert why_not("triton", "cuda", torch.float32, 3) == (
        "serves convolutions in 1 and 2 dimensions, not 3"
    )
    with use("triton"):
        with pytest.raises(RuntimeError, match=r"triton: serves float32, float16 and bfloat16"):
            resolve("linear_wgrad", "cuda", torch.float64)
        with pytest.raises(RuntimeError, match=r"triton: serves cuda, not cpu"):
            resolve("linear_wgrad", "cpu", torch.float32)
        with pytest.raises(RuntimeError, match=r"triton: has no pack_channels"):
            resolve("pack_channels", "cuda", torch.float32)
    backends.use(None)


@pytest.mark.parametrize(
    ("found", "reason"), [("3.3.1", "expected triton >= 3.4, found 3.3.1"), ("3.4.0", None)]
)
def test_triton_too_old(found, reason, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(kernels, "version", lambda name: found)
    assert (kernels._why_no_triton.__wrapped__() or "").partition(";")[0] == (reason or "")


@pytest.mark.parametrize("found", ["3.3.1", None])
def test_without_a_triton_that_serves_layers_train_and_the_report_says_why(found, monkeypatch):
    def version(name):
        if found is None:
            raise ImportError(name)
        return found

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(kernels, "find_spec", lambda name: object())
    monkeypatch.setattr(kernels, "version", version)
    kernels._why_no_triton.cache_clear()
    monkeypatch.setattr(kernels, "_why_no_gpu", lambda: None)
    try:
        reason = "expected triton >= 3.4, found 3.3.1" if found else "triton is not installed"
        assert f"triton   {reason}; pip install 'neq_kernels[triton]'" in backends.report()
        with pytest.raises(RuntimeError, match=rf"backend=triton: not available here: {reason}"):
            use("triton")
        layer = neq.convert(torch.nn.Linear(4, 16))
        layer.set_active([3])
        layer(torch.ones(2, 4)).sum().backward()
        assert layer.weight.grad.any(1).nonzero().flatten().tolist() == [3]
    finally:
        kernels._why_no_triton.cache_clear()


def test_a_missing_extension_is_explained(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "why_not", lambda: "it was not built; rebuild")
    backends.use(None)
    assert resolve("pack_channels", "cpu", torch.float32)[0] == "torch"
    with pytest.raises(RuntimeError, match=r"backend=native: not available here: .*rebuild"):
        use("native")
    assert "native   it was not built" in backends.report()
    assert why_not("torch") is None


@needs_native
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_the_environment_chooses_what_the_layers_use(backend):
    code = """
import torch, neq_kernels as neq
from neq_kernels import backends
from neq_kernels.planner import rule
rule.choose = lambda geometry: "packed"
model = neq.convert(torch.nn.Sequential(torch.nn.Linear(4, 16)))
neq.set_active(model, {"0": [3]})
model(torch.ones(2, 4)).sum().backward()
print(neq.report(model).layers[0].path)
print(backends.report())
"""
    result = python(code, NEQ_BACKEND=backend)
    assert result.returncode == 0, result.stderr
    assert f"packed ({backend})" in result.stdout
    assert f"requested: {backend}" in result.stdout


def test_nonsense_in_the_environment_raises_at_import():
    result = python("import neq_kernels", NEQ_BACKEND="nonsense")
    assert result.returncode
    assert "NEQ_BACKEND: expected one of triton, native, torch, got 'nonsense'" in result.stderr


def test_an_empty_variable_requests_nothing():
    result = python("from neq_kernels import backends; print(backends.report())", NEQ_BACKEND="")
    assert "requested: none" in result.stdout, result.stderr


BLOCK = """
import sys
from importlib.abc import MetaPathFinder

class Block(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Block())
"""


@pytest.fixture
def without_extension(tmp_path):
    """A folder with a copy of the package that lacks what was built."""
    return copy_without_extension(tmp_path)


def test_works_without_extension_triton_and_transformers(without_extension):
    code = BLOCK.format(blocked=["triton", "transformers"]) + (
        """
import torch, neq_kernels as neq
from neq_kernels import backends
model = neq.convert(torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.LayerNorm(16)))
neq.set_active(model, {"0": [3]})
model(torch.randn(2, 4)).square().sum().backward()
print(model[0].weight.grad.any(1).nonzero().flatten().tolist())
print(backends.report())
"""
    )
    result = python(code, without_extension, NEQ_BACKEND="")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "[3]"
    assert lines[1] == "triton   triton is not installed; pip install 'neq_kernels[triton]'"
    assert lines[2].startswith("native   the native extension was not built")
    assert "rebuild with" in lines[2]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("_C" + EXTENSION_SUFFIXES[0], r"the native extension does not load"),
        ("_C.cpython-27-nowhere.so", r"built for another Python \(_C\.cpython-27-nowhere\.so\)"),
    ],
    ids=["broken", "foreign"],
)
def test_a_request_for_an_extension_that_does_not_load_says_why(without_extension, name, reason):
    (without_extension / "neq_kernels" / name).write_bytes(b"not a library")
    result = python("import neq_kernels", without_extension, NEQ_BACKEND="native")
    assert result.returncode
    assert re.search(rf"NEQ_BACKEND=native: not available here: .*{reason}.*rebuild", result.stderr)
    result = python("import neq_kernels; print('fine')", without_extension, NEQ_BACKEND="")
    assert result.stdout.strip() == "fine", result.stderr


def test_import_loads_nothing_heavy():
    """Neither what is optional nor torch's own slow parts. (Triton itself is imported by torch's
    FLOP counter, where formulas are registered.)"""
    heavy = [
        "neq_kernels.kernels.common", "transformers", "sklearn", "matplotlib",
        "torch._inductor.compile_fx",
    ]  # fmt: skip
    result = python(
        f"import sys, neq_kernels; print([m for m in {heavy!r} if m in sys.modules])",
        NEQ_BACKEND="",
    )
    assert result.stdout.strip() == "[]", result.stderr


@needs_native
def test_backends_agree():
    torch.manual_seed(0)
    model = neq.convert(torch.nn.Conv2d(3, 16, 3))
    model.set_active([0, 5, 9])
    x = torch.randn(2, 3, 6, 6)
    seen = []
    for name in ("native", "torch"):
        model.zero_grad()
        with use(name):
            model(x).square().sum().backward()
        seen.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*seen)
