import os

import pytest
import torch

from neq_kernels import backends, native
from neq_kernels.planner import rule

# The rule alone, unless a test says otherwise: a path that depends on the clock would make
# failures come and go.
os.environ["NEQ_PLAN"] = "off"


@pytest.fixture(params=["torch", "native"])
def backend(request):
    """Each backend in turn, required for every operator."""
    if reason := backends.why_not(request.param):
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


@pytest.fixture(params=["packed", "dense"])
def path(request, monkeypatch):
    """Each path in turn, whatever the planner would choose."""
    monkeypatch.setattr(rule, "choose", lambda geometry: request.param)
    return request.param


@pytest.fixture
def poison(monkeypatch):
    """Memory that was never written holds NaN, so that reading it shows."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
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
