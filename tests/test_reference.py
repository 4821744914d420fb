"""The specification against dense autograd in fp64, and the lists that it reads."""

import pytest
import torch
import torch.nn.functional as F
from cases import SETS, chosen, frozen_of, randn, zeroed
from hypothesis import given, settings
from hypothesis import strategies as st

from neq_kernels import reference
from neq_kernels.active import ActiveSet, lists

pytestmark = pytest.mark.usefixtures("poison", "one_thread")

CONVOLUTIONS = [
    ((2, 4, 6, 5), (11, 4, 3, 2), (2, 1), (1, 0), (1, 2), 1),
    ((2, 6, 6, 5), (12, 2, 3, 3), (1, 1), (1, 1), (1, 1), 3),
    ((2, 9, 5, 5), (9, 1, 3, 3), (1, 1), (1, 1), (1, 1), 9),
    ((2, 4, 9), (10, 2, 3), (2,), (1,), (2,), 2),
    ((1, 2, 4, 4, 3), (9, 2, 2, 3, 1), (1, 2, 1), (0, 1, 0), (1, 1, 1), 1),
]


def padded(index, size):
    """A layer's two tensors for the set ``index``."""
    list_ = torch.full((size,), -1, dtype=torch.int32)
    list_[: len(index)] = torch.tensor(index, dtype=torch.int32)
    return lists(list_, torch.tensor(len(index)))


def every_set(size):
    for name in SETS:
        index = chosen(name, size)
        if index:
            yield index, frozen_of(index, size), padded(index, size)


def assert_gradient(ours, dense, frozen, dim=0):
    expected = zeroed(dense, dim, frozen)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)
    assert (ours.index_select(dim, torch.tensor(frozen, dtype=torch.long)) == 0).all()


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6), (0, 6)])
def test_linear(shape, columns):
    x, weight = randn(shape, torch.float64, 1), randn((11, 6), torch.float64, 2)
    dy = randn((*shape[:-1], 11), torch.float64, 3)
    parameters = [t.requires_grad_() for t in (x, weight, torch.zeros(11).double())]
    _, dw, db = torch.autograd.grad(F.linear(*parameters), parameters, dy)
    stored = weight.detach().t().contiguous() if columns else weight.detach()
    for _, frozen, channels in every_set(11):
        dx, _, _ = torch.autograd.grad(F.linear(*parameters), parameters, zeroed(dy, -1, frozen))
        alone = reference.linear_wgrad(dy, x.detach(), channels, True, columns)
        both = reference.linear_backward(dy, x.detach(), stored, channels, True, columns)
        for ours_dw, ours_db in (alone, both[1:]):
            assert_gradient(ours_dw.t() if columns else ours_dw, dw, frozen)
            assert_gradient(ours_db, db, frozen)
        torch.testing.assert_close(both[0], dx, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("geometry", CONVOLUTIONS)
def test_conv(geometry):
    x_shape, w_shape, stride, padding, dilation, groups = geometry
    x, weight = randn(x_shape, torch.float64, 1), randn(w_shape, torch.float64, 2)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1]
    parameters = [t.requires_grad_() for t in (x, weight, torch.zeros(w_shape[0]).double())]

    def dense(dy):
        y = convolve(*parameters, stride, padding, dilation, groups)
        return torch.autograd.grad(y, parameters, dy)

    output = convolve(*parameters, stride, padding, dilation, groups).shape
    dy = randn(tuple(output), torch.float64, 3)
    _, dw, db = dense(dy)
    arguments = (True, stride, padding, dilation, groups)
    for _, frozen, channels in every_set(w_shape[0]):
        tensors = (dy, x.detach(), weight.detach(), channels)
        both = reference.conv_backward(*tensors, *arguments)
        for ours_dw, ours_db in (reference.conv_wgrad(*tensors, *arguments), both[1:]):
            assert_gradient(ours_dw, dw, frozen)
            assert_gradient(ours_db, db, frozen)
        torch.testing.assert_close(both[0], dense(zeroed(dy, 1, frozen))[0])


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_pack_channels_takes_the_listed_channels_and_pads_with_zeros(dim):
    dy = randn((5, 5, 5), torch.float64, 1)
    index = torch.tensor([1, 4, -1], dtype=torch.int32)
    packed, sums = reference.pack_channels(dy, index, 3, dim, True)
    assert torch.equal(packed.movedim(dim, 0)[:2], dy.movedim(dim, 0)[[1, 4]])
    assert (packed.movedim(dim, 0)[2] == 0).all()
    torch.testing.assert_close(sums, packed.movedim(dim, 0).flatten(1).sum(1))
    assert reference.pack_channels(dy, index, 3, dim, False)[1].numel() == 0


def test_padding_is_zero_also_where_dy_is_not_a_number():
    dy = torch.full((2, 3), float("nan"))
    packed, sums = reference.pack_channels(dy, torch.tensor([2, -1]).int(), 2, 1, True)
    assert packed[:, 1].tolist() == [0, 0]
    assert sums[1] == 0


@pytest.mark.parametrize("extra", [0, 1, 5])
@pytest.mark.parametrize("dim", [0, 1])
def test_spread_ignores_what_lies_beyond_the_count(extra, dim):
    index = [1, 2, 6]
    rows = torch.full((3 + extra, 3 + extra), float("nan"))
    wanted = randn((3, 3 + extra), torch.float32, 1)
    (rows if dim == 0 else rows.t())[:3] = wanted
    full = reference.spread(rows, padded(index, 8), dim)
    full = full if dim == 0 else full.t()
    assert torch.equal(full[index], wanted)
    assert (full[frozen_of(index, 8)] == 0).all()


@pytest.mark.parametrize("shape", [(8, 3, 2, 2), (8, 1, 2, 2), (8, 3, 1, 1), (8, 2, 2, 2, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("rows_channels_last", [False, True])
def test_spread_has_the_strides_of_the_weight(shape, channels_last, rows_channels_last):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}

    def stored(tensor, last):
        return tensor.contiguous(memory_format=formats[len(shape)]) if last else tensor

    weight = stored(torch.randn(shape), channels_last)
    rows = stored(torch.randn(2, *shape[1:]), rows_channels_last)
    full = reference.spread(rows.clone(), padded([0, 5], 8), like=weight)
    assert full.stride() == weight.stride()
    assert torch.equal(full[[0, 5]], rows)
    assert (full[[1, 2, 3, 4, 6, 7]] == 0).all()


def test_mask_rows():
    gradient = torch.full((4, 3), float("inf"))
    masked = reference.mask_rows(gradient, padded([1], 3), 1)
    assert masked.tolist() == [[0, float("inf"), 0]] * 4
    assert gradient.isinf().all()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_regrouped_is_a_smaller_grouped_convolution(groups, per_group, data):
    size = groups * per_group
    index = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))
    places = padded(index, size).regrouped(groups)
    owners = [channel // per_group for channel in index]
    assert places.groups.tolist() == sorted(set(owners))
    width = max(owners.count(owner) for owner in owners)
    assert places.count == len(set(owners)) * width
    listed = places.index.view(-1, width).tolist()
    for owner, row in zip(places.groups.tolist(), listed, strict=True):
        kept = [channel for channel in row if channel >= 0]
        assert kept == [c for c in index if c // per_group == owner]
        assert row == kept + [-1] * (width - len(kept))
    for channel, place in enumerate(places.inverse.tolist()):
        wanted = places.index.tolist().index(channel) if channel in index else places.count
        assert place == wanted


def test_lists_follow_a_change_in_place():
    index, count = torch.tensor([0, 2, -1], dtype=torch.int32), torch.tensor(2)
    assert lists(index, count).frozen.tolist() == [1]
    assert lists(index, count) is lists(index, count)
    index.copy_(torch.tensor([1, -1, -1]))
    count.fill_(1)
    found = lists(index, count)
    assert found.index.tolist() == [1]
    assert found.inverse.tolist() == [1, 0, 1]
    assert found.frozen.tolist() == [0, 2]
    assert (found.count, found.size) == (1, 3)


def test_lists_agree_with_the_set_they_were_made_from():
    active = ActiveSet.from_index([4, 1], 6)
    found = padded([1, 4], 6)
    assert torch.equal(found.index, active.index)
    assert torch.equal(found.frozen, active.frozen)
