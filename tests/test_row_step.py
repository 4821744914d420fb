"""row_sgd and row_adamw: active rows as the reference in double has them, all else untouched."""

import pytest
import torch

from neq_kernels import backends, native, reference

needs_native = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SGD = {
    "plain": (0.1, 0.0, 0.0, 0.0, False, False),
    "decay, maximize": (0.1, 0.0, 0.0, 0.3, False, True),
    "momentum": (0.1, 0.9, 0.0, 0.0, False, False),
    "momentum, dampening, decay": (0.1, 0.9, 0.4, 0.3, False, False),
    "nesterov, decay, maximize": (0.1, 0.9, 0.0, 0.3, True, True),
}
ADAMW = {  # lr, beta1, beta2, eps, weight_decay, decoupled, amsgrad, maximize
    "AdamW": (0.1, 0.9, 0.99, 1e-8, 0.3, True, False, False),
    "Adam": (0.1, 0.9, 0.99, 1e-8, 0.3, False, False, True),
    "AMSGrad": (0.1, 0.5, 0.9, 1e-3, 0.0, True, True, False),
    "Adam, AMSGrad": (0.1, 0.9, 0.999, 1e-8, 0.3, False, True, True),
}
OPTIONS = [("row_sgd", name) for name in SGD] + [("row_adamw", name) for name in ADAMW]


def last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


# shape, dimension of neurons, layout of the parameter and its state, layout of the gradient
LAYOUTS = [
    ((64, 48), 0, torch.Tensor.contiguous, torch.Tensor.contiguous),
    ((7, 5000), 0, torch.Tensor.contiguous, torch.Tensor.contiguous),  # pieces within a row
    ((13, 37), 1, torch.Tensor.contiguous, torch.Tensor.contiguous),  # columns
    ((70,), 0, torch.Tensor.contiguous, torch.Tensor.contiguous),
    ((1, 1), 0, torch.Tensor.contiguous, torch.Tensor.contiguous),
    ((6, 5, 3, 3), 0, last, last),
    ((6, 5, 3, 3), 0, last, torch.Tensor.contiguous),
    ((9, 14), 0, lambda t: t.t().contiguous().t(), torch.Tensor.contiguous),
    ((9, 14), 0, lambda t: torch.stack([t, t], -1)[..., 0], torch.Tensor.contiguous),  # strided
    ((9, 14), 0, torch.Tensor.contiguous, lambda t: t[:1].expand(9, 14)),
    ((0, 4), 0, torch.Tensor.contiguous, torch.Tensor.contiguous),
    ((4, 0), 0, torch.Tensor.contiguous, torch.Tensor.contiguous),
]


def indices(size):
    """All without an index, all with one, none, one, some; padded as layers pad theirs."""
    generator = torch.Generator().manual_seed(size)
    some = torch.rand(size, generator=generator) < 0.4
    for chosen in (torch.ones(size), torch.zeros(size), torch.arange(size) == size - 1, some):
        index = chosen.nonzero().flatten().int()
        yield torch.cat([index, index.new_full((size - index.numel(),), -1)]), index.numel()
    yield torch.empty(0, dtype=torch.int32), -1


def make(operator, name, dtype, seed=0):
    """The tensors of one call, every layout with every index, and its remaining arguments."""
    generator = torch.Generator().manual_seed(seed)
    options = (SGD if operator == "row_sgd" else ADAMW)[name]
    states = (1 if options[1] else 0) if operator == "row_sgd" else 2 + options[6]
    lists = [[] for _ in range(2 + states)]
    index, count, dim = [], [], []
    for shape, axis, layout, gradient_layout in LAYOUTS:
        for active, n in indices(shape[axis]):
            for t, tensors in enumerate(lists):
                value = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
                if value.numel():
                    value = (gradient_layout if t == 1 else layout)(value.abs() if t > 2 else value)
                tensors.append(value)
            index.append(active)
            count.append(n)
            dim.append(axis)
    return lists, (index, count, dim), options


def call(function, operator, lists, rows, options):
    params, grads, *states = lists
    if operator == "row_sgd":
        function(params, grads, states[0] if states else [], *rows, *options)
        return None
    steps = [torch.tensor(float(i % 4)) for i in range(len(params))]
    largest = states[2] if len(states) == 3 else []
    function(params, grads, *states[:2], largest, steps, *rows, *options)
    return steps


def copy(lists, dtype=None):
    def one(tensor):
        made = torch.empty_like(tensor, dtype=dtype, memory_format=torch.preserve_format)
        return made.copy_(tensor)

    return [[one(tensor) for tensor in tensors] for tensors in lists]


def strided_copy(lists):
    """Copies that keep every stride and what lies between."""
    copies = []
    for tensors in lists:
        copies.append([])
        for t in tensors:
            storage = t.untyped_storage().clone()
            view = torch.empty(0, dtype=t.dtype)
            copies[-1].append(view.set_(storage, t.storage_offset(), t.size(), t.stride()))
    return copies


def bits(tensor):
    flat = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return flat.view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("operator", "name"), OPTIONS)
def test_active_rows_as_in_double_and_all_else_untouched(operator, name, dtype, backend):
    lists, rows, options = make(operator, name, dtype)
    exact, own = copy(lists, torch.float64), copy(lists)
    call(getattr(reference, operator), operator, exact, rows, options)
    call(getattr(reference, operator), operator, own, rows, options)
    stepped = strided_copy(lists)
    steps = call(backends.resolve(operator, "cpu", dtype)[1], operator, stepped, rows, options)
    if steps:
        assert [float(step) for step in steps] == [i % 4 + 1.0 for i in range(len(steps))]
    eps = torch.finfo(dtype).eps
    for t, tensors in enumerate(stepped):
        for i, value in enumerate(tensors):
            before, right = lists[t][i], exact[t][i]
            own_error = (own[t][i].double() - right).abs()
            limit = torch.maximum(2 * own_error, 4 * eps * right.abs().clamp(min=1))
            assert ((value.double() - right).abs() <= limit).all(), (t, i)
            index, count, dim = (part[i] for part in rows)
            active = torch.zeros(before.size(dim), dtype=torch.bool)
            active[index[: max(count, 0)].long()] = True
            if count < 0:
                active.fill_(True)
            frozen = (~active).nonzero().flatten()
            assert torch.equal(value.index_select(dim, frozen), before.index_select(dim, frozen))
            if t == 1 or count == 0:
                assert torch.equal(bits(value), bits(before)), "gaps in memory, and gradients"
            elif t == 0 and before.numel() > 8 and count:
                moved = (value != before).index_select(dim, active.nonzero().flatten())
                assert moved.any()


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("operator", "name"), OPTIONS)
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(operator, name, dtype):
    lists, rows, options = make(operator, name, dtype, seed=1)
    function = getattr(torch.ops.neq_kernels, operator)
    before, threads, results = native.cpu_isa(), torch.get_num_threads(), []
    try:
        for isa in native.build_info()["cpu_isas"]:
            native.set_cpu_isa(isa)
            for count in (1, 2):
                torch.set_num_threads(count)
                stepped = strided_copy(lists)
                call(function, operator, stepped, rows, options)
                results.append([bits(value) for tensors in stepped for value in tensors])
    finally:
        native.set_cpu_isa(before)
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_scalars_and_nothing_at_all(backend):
    sgd = backends.resolve("row_sgd", "cpu", torch.float32)[1]
    p, g = torch.tensor(1.0), torch.tensor(0.5)
    rows = [torch.empty(0, dtype=torch.int32)], [-1], [0]
    sgd([p], [g], [], *rows, *SGD["plain"])
    assert p == pytest.approx(0.95)
    sgd([], [], [], [], [], [], *SGD["plain"])
    adamw = backends.resolve("row_adamw", "cpu", torch.float32)[1]
    adamw([], [], [], [], [], [], [], [], [], *ADAMW["AdamW"])


def test_steps_are_counted_in_double_too(backend):
    adamw = backends.resolve("row_adamw", "cpu", torch.float64)[1]
    tensors = [[torch.ones(3, dtype=torch.float64)] for _ in range(4)]
    step = torch.tensor(7.0, dtype=torch.float64)
    rows = [torch.empty(0, dtype=torch.int32)], [-1], [0]
    adamw(*tensors, [], [step], *rows, *ADAMW["AdamW"])
    assert step == 8


def test_autograd_notices_that_a_parameter_has_changed(backend):
    p = torch.nn.Parameter(torch.ones(3))
    y = (p * p).sum()
    rows = [torch.empty(0, dtype=torch.int32)], [-1], [0]
    with torch.no_grad():
        sgd = backends.resolve("row_sgd", "cpu", torch.float32)[1]
        sgd([p], [torch.ones(3)], [], *rows, *SGD["plain"])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@needs_native
def test_operators_are_registered_as_torch_wants_them():
    for operator, options in (("row_sgd", SGD["momentum"]), ("row_adamw", ADAMW["AdamW"])):
        tensors = [[torch.rand(4, 3)] for _ in range(3 if operator == "row_sgd" else 4)]
        extra = [] if operator == "row_sgd" else [[], [torch.tensor(1.0)]]
        rows = [torch.tensor([1, 2], dtype=torch.int32)], [2], [0]
        function = getattr(torch.ops.neq_kernels, operator).default
        torch.library.opcheck(function, (*tensors, *extra, *rows, *options))


def one(**changes):
    arguments = {
        "params": [torch.zeros(4, 3)],
        "grads": [torch.zeros(4, 3)],
        "momentum_buffers": [torch.zeros(4, 3)],
        "index": [torch.tensor([0, 2], dtype=torch.int32)],
        "count": [2],
        "dim": [0],
    }
    torch.ops.neq_kernels.row_sgd(*(arguments | changes).values(), *SGD["momentum"])


@needs_native
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grads": []}, "grads: expected 1, one per parameter, got 0"),
        ({"momentum_buffers": []}, "momentum_buffers: expected 1, one per parameter, got 0"),
        ({"count": []}, "count: expected 1, one per parameter"),
        ({"dim": [0, 0]}, "dim: expected 1, one per parameter, got 2"),
        ({"grads": [torch.zeros(4, 2)]}, "gradient: expected the parameter's dtype 0 and shape"),
        ({"grads": [torch.zeros(4, 3).double()]}, "gradient: expected the parameter's dtype 0"),
        ({"grads": [torch.zeros(4, 3).int()]}, "grads: expected float32, float64, float16 or bf"),
        ({"momentum_buffers": [torch.zeros(1, 3).expand(4, 3)]}, "expected memory of its own"),
        ({"dim": [2]}, "dim: expected one of its 2 dimensions, got 2"),
        ({"count": [3]}, "index: expected a contiguous int32 list"),
        ({"count": [-2]}, "count: expected -1 or up to its 4 neurons, got -2"),
        ({"index": [torch.tensor([2, 0]).int()]}, r"index: expected rising neurons in \[0, 4\)"),
        ({"index": [torch.tensor([0, 4]).int()]}, r"got 4 in place 1; sort it, once each"),
        ({"index": [torch.tensor([0, 2])]}, "index: expected a contiguous int32 list"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_written(changes, message):
    with pytest.raises(RuntimeError, match=message):
        one(**changes)


@needs_native
def test_steps_must_be_single_floats():
    tensors = [[torch.ones(3)] for _ in range(4)]
    rows = [torch.empty(0, dtype=torch.int32)], [-1], [0]
    for wrong in (torch.tensor(1), torch.zeros(2)):
        with pytest.raises(RuntimeError, match="steps: expected one float32 or float64 on the CPU"):
            torch.ops.neq_kernels.row_adamw(*tensors, [], [wrong], *rows, *ADAMW["AdamW"])
    with pytest.raises(RuntimeError, match="step: expected 1 or more, got -1"):
        torch.ops.neq_kernels.row_adamw(*tensors, [], [torch.tensor(-2.0)], *rows, *ADAMW["AdamW"])
