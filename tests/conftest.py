import os

import pytest
import torch

from neq_kernels import backends, native
from neq_kernels.planner import rule

# The rule alone, unless a test says otherwise: a path that depends on the clock would make
# failures come and go.
os.environ["NEQ_PLAN"] = "off"


# Deterministic products on a GPU need it, before the first of them.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(config, items):
    """Tests on a device run on the CPU; under ``-m gpu`` the same ones run on a GPU."""
    if "gpu" in config.option.markexpr:
        return
    parameters = {item: getattr(item, "callspec", None) for item in items}
    there = [i for i, spec in parameters.items() if spec and spec.params.get("device") == "cuda"]
    there += [
        item
        for item, spec in parameters.items()
        if spec and spec.params.get("backend") == "triton" and item not in there
    ]
    config.hook.pytest_deselected(items=there)
    items[:] = [item for item in items if item not in set(there)]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """Where tensors are made unless a test says otherwise: the CPU, and under -m gpu a GPU."""
    if request.param == "cpu":
        yield "cpu"
        return
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    # Float32 products in float32, as the fp64 truth asks for.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with torch.device("cuda"):
        yield "cuda"


@pytest.fixture(params=["torch", "native", pytest.param("triton", marks=pytest.mark.gpu)])
def backend(request):
    """Each backend in turn, required for every operator."""
    device = request.getfixturevalue("device") if "device" in request.fixturenames else "cpu"
    if reason := backends.why_not(request.param, device):
        pytest.skip(reason)
    with backends.use(request.param):
        yield request.param


@pytest.fixture(params=["scalar", "avx2", "avx512"])
def isa(request):
    """Each instruction set of the CPU kernels in turn, forced."""
    if not native.available() or request.param not in native.build_info()["cpu_isas"]:
        pytest.skip(f"this processor has no {request.param}, or there is no native extension")
    before = native.cpu_isa()
    native.set_cpu_isa(request.param)
    yield request.param
    native.set_cpu_isa(before)


@pytest.fixture(params=["packed", "direct", "dense"])
def path(request, force_path):
    """Each path in turn, whatever the planner would choose."""
    return force_path(request.param)


@pytest.fixture
def force_path(monkeypatch):
    def force(path):
        monkeypatch.setattr(rule, "choose", lambda geometry: path)
        return path

    return force


@pytest.fixture
def poison(monkeypatch):
    """Memory that was never written holds NaN, so that reading it shows."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    # On a GPU some of torch's own backwards have no deterministic way: these only warn.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.fixture
def one_thread():
    """On tensors this small, threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def hooks_pay(monkeypatch):
    """Shrink lets branches of sums be narrow however little that saves, as in tiny networks."""
    from neq_kernels.pruning.shrink import plan

    monkeypatch.setattr(plan, "PAYS", {"cpu": 0})
