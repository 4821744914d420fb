import copy
import pickle

import pytest
import torch

from neq_kernels import ActiveSet
from neq_kernels.active import bucket


def test_from_mask():
    active = ActiveSet.from_mask(torch.tensor([True, False, True]))
    assert active.index.dtype == torch.int32
    assert active.index.tolist() == [0, 2]
    assert (active.count, active.size) == (2, 3)
    assert active.frozen.tolist() == [1]
    assert active.frozen.dtype == torch.int64
    assert active.mask().tolist() == [True, False, True]
    assert not active.is_full
    assert not active.is_empty


@pytest.mark.parametrize(
    "index", [[3, 0], torch.tensor([3, 0]), torch.tensor([3, 0]).to(torch.uint8)]
)
def test_from_index_sorts(index):
    assert ActiveSet.from_index(index, 5).index.tolist() == [0, 3]


def test_full_and_empty():
    full, empty = ActiveSet.full(3), ActiveSet.empty(3)
    assert full.is_full
    assert full.mask().all()
    assert full.frozen.numel() == 0
    assert empty.is_empty
    assert not empty.mask().any()
    assert empty.frozen.tolist() == [0, 1, 2]
    assert ActiveSet.from_index([], 3) == empty
    assert ActiveSet.from_index(torch.empty(0, dtype=torch.int64), 3) == empty
    assert ActiveSet.from_mask([True] * 3) == full
    assert ActiveSet.empty(0) == ActiveSet.full(0)


def test_equal_sets_are_one_key():
    a, b = ActiveSet.from_index([2, 0], 4), ActiveSet.from_mask([True, False, True, False])
    assert a == b
    assert {a: 1}[b] == 1
    assert a != ActiveSet.from_index([0, 2], 5)
    assert a != ActiveSet.from_index([0, 1], 4)
    assert a != [0, 2]


def test_the_mask_is_a_copy_and_so_is_what_the_set_was_made_from():
    mask, index = torch.tensor([True, False, True]), torch.tensor([0, 2], dtype=torch.int64)
    sets = ActiveSet.from_mask(mask), ActiveSet.from_index(index, 3)
    mask.fill_(True)
    index.fill_(1)
    sets[0].mask().fill_(True)
    assert all(active.mask().tolist() == [True, False, True] for active in sets)


def test_int32_in_rising_order_is_copied_too():
    index = torch.tensor([0, 2], dtype=torch.int32)
    active = ActiveSet.from_index(index, 3)
    index.fill_(1)
    assert active.index.tolist() == [0, 2]


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))]
)
def test_copies_are_equal(copied):
    active = ActiveSet.from_index([1, 3], 5)
    assert copied(active) == active
    assert copied(active).frozen.tolist() == [0, 2, 4]


def test_repr_says_how_many():
    assert repr(ActiveSet.from_index([1], 5)) == "ActiveSet(1 of 5 active)"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ActiveSet.from_mask(torch.ones(3)), TypeError, "mask: expected a bool tensor"),
        (lambda: ActiveSet.from_mask(torch.ones(1, 3).bool()), ValueError, r"mask: .*\(1, 3\)"),
        (lambda: ActiveSet.from_mask(torch.tensor(True)), ValueError, "mask: expected one dim"),
        (lambda: ActiveSet.from_index([0.5], 3), TypeError, "index: expected integers"),
        (lambda: ActiveSet.from_index([True, False], 3), TypeError, "use from_mask for a mask"),
        (lambda: ActiveSet.from_index([[0]], 3), ValueError, "index: expected one dimension"),
        (lambda: ActiveSet.from_index([3], 3), IndexError, r"in \[0, 3\), got 3"),
        (lambda: ActiveSet.from_index([-1], 3), IndexError, r"in \[0, 3\), got -1"),
        (lambda: ActiveSet.from_index([1, 2, 1], 3), ValueError, "got channel 1 repeatedly"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_bucket():
    assert [bucket(n) for n in (0, 1, 8, 9, 64)] == [0, 8, 8, 16, 64]
    assert [bucket(n) for n in (65, 80, 81, 128, 129, 160, 1025)] == [
        80,
        80,
        96,
        128,
        160,
        160,
        1280,
    ]


def test_buckets_hold_their_count_and_are_few():
    sizes = {bucket(n) for n in range(1, 4097)}
    assert all(n <= bucket(n) for n in range(1, 4097))
    assert len(sizes) == 8 + 4 * 6
    assert all(bucket(size) == size and size % 8 == 0 for size in sizes)
