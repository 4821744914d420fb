import pytest

from neq_kernels import kernels


@pytest.fixture
def triton_device():
    """Where Triton's kernels run: a GPU, or under TRITON_INTERPRET=1 the CPU."""
    device = "cpu" if kernels.interpreted() else "cuda"
    if reason := kernels.why_not(device):
        pytest.skip(reason)
    return device
