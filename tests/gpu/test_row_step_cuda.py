"""row_sgd and row_adamw on a GPU: the cases of tests/test_row_step.py, compared with the CPU's."""

import pytest
import torch
from test_row_step import DTYPES, OPTIONS, bits, call, copy, make, strided_copy

import neq_kernels as neq
from neq_kernels import backends, reference

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def needs_cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU and a CUDA build of torch")
    for operator in ("row_sgd", "row_adamw"):
        with backends.use("native"):
            backends.resolve(operator, "cuda", torch.float32)


def moved(lists):
    """Copies on the GPU that keep every stride and what lies between."""
    copies = []
    for tensors in strided_copy(lists):
        copies.append([])
        for t in tensors:
            storage = t.untyped_storage().cuda()
            view = torch.empty(0, dtype=t.dtype, device="cuda")
            copies[-1].append(view.set_(storage, t.storage_offset(), t.size(), t.stride()))
    return copies


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("operator", "name"), OPTIONS)
def test_as_in_double_and_the_same_bits_every_time(operator, name, dtype):
    lists, (index, count, dim), options = make(operator, name, dtype)
    exact, own = copy(lists, torch.float64), copy(lists)
    call(getattr(reference, operator), operator, exact, (index, count, dim), options)
    call(getattr(reference, operator), operator, own, (index, count, dim), options)
    rows = [i.cuda() for i in index], count, dim
    function = getattr(torch.ops.neq_kernels, operator)
    results = []
    for _ in range(2):
        stepped = moved(lists)
        call(function, operator, stepped, rows, options)
        results.append(stepped)
    eps = torch.finfo(dtype).eps
    for t, tensors in enumerate(results[0]):
        for i, value in enumerate(tensors):
            assert torch.equal(bits_of(value), bits_of(results[1][t][i]))
            right = exact[t][i]
            error = (value.cpu().double() - right).abs()
            limit = 2 * (own[t][i].double() - right).abs()
            assert (error <= limit.clamp(min=4 * eps).maximum(4 * eps * right.abs())).all()
            if t == 1 or count[i] == 0:
                assert torch.equal(bits_of(value), bits(lists[t][i]))


def bits_of(tensor):
    flat = torch.empty(0, dtype=tensor.dtype, device="cuda").set_(tensor.untyped_storage())
    return flat.cpu().view(torch.uint8)


def test_the_optimizer_waits_for_nothing():
    model = neq.convert(torch.nn.Sequential(torch.nn.Linear(64, 32)).cuda())
    optimizer = neq.optim.AdamW(model.parameters(), model=model)
    model[0].set_active(range(0, 32, 3))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    before = model[0].weight.detach().clone()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    same = (model[0].weight == before).all(1)
    assert torch.equal(same.nonzero().flatten().cpu(), model[0].active.frozen)
