"""The written rule: packed where it saves clearly more than it costs, dense elsewhere."""

from dataclasses import replace

import pytest
import torch

from neq_kernels import planner
from neq_kernels.planner import Geometry, choose

WIDE = Geometry("linear", "cpu", torch.float32, 1576, 768, 3072, 307)
CONV = Geometry("conv", "cpu", torch.float32, 8 * 14 * 14, 128 * 9, 128, 13, kernel=9)
NARROW = Geometry("conv", "cpu", torch.float32, 128 * 32 * 32, 16 * 9, 16, 8, kernel=9)
DEPTHWISE = Geometry("conv", "cpu", torch.float32, 16 * 24 * 24, 9, 144, 14, groups=144, kernel=9)
PROJECT = Geometry("conv", "cpu", torch.float32, 16 * 24 * 24, 144, 24, 2)


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.mark.parametrize("geometry", [WIDE, CONV, NARROW, DEPTHWISE])
@pytest.mark.parametrize("propagate", ["all", "active"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_measure_faster_are_packed(geometry, propagate, dtype):
    assert choose(replace(geometry, propagate=propagate, dtype=dtype)) == "packed"


@pytest.mark.parametrize(
    "geometry",
    [
        replace(WIDE, positions=1),
        Geometry("linear", "cpu", torch.float32, 128, 64, 10, 1),
        Geometry("linear", "cpu", torch.float32, 64, 128, 128, 13),
        replace(CONV, positions=10),
        replace(DEPTHWISE, positions=16),
    ],
    ids=["one token", "head", "small", "few positions", "small depthwise"],
)
def test_where_calls_cost_more_than_rows_it_is_dense(geometry):
    assert choose(geometry) == "dense"


def test_a_block_of_channels_that_is_computed_anyway_saves_nothing():
    assert choose(replace(NARROW, count=8)) == "packed"
    assert choose(replace(NARROW, count=9)) == "dense"


@pytest.mark.parametrize("geometry", [WIDE, CONV, NARROW, DEPTHWISE])
def test_fewer_active_neurons_never_turn_packed_into_dense(geometry):
    paths = [choose(replace(geometry, count=n)) for n in range(1, geometry.size)]
    assert paths == sorted(paths, reverse=True)
    assert paths[-1] == "dense"


def test_a_wide_input_is_read_however_few_rows_are_computed():
    assert choose(PROJECT) == "dense"
    assert choose(replace(PROJECT, fan_in=24, size=144)) == "packed"


@pytest.mark.parametrize("count", [14, 36, 72])
@pytest.mark.parametrize("propagate", ["all", "active"])
def test_channels_last_depthwise_convolutions_pack_nothing(count, propagate):
    last = replace(DEPTHWISE, channels_last=True, count=count, propagate=propagate)
    assert choose(last) == "dense"


@pytest.mark.parametrize("channels_last", [False, True])
def test_fused_depthwise_convolutions_pay_however_many_are_active(channels_last):
    fused = replace(DEPTHWISE, fused=True, channels_last=channels_last)
    assert choose(fused) == "packed"
    assert choose(replace(fused, count=143)) == "packed"
    advantages = [planner.rule.advantage(replace(fused, count=n)) for n in (14, 72, 143)]
    assert advantages == sorted(advantages, reverse=True)
    assert choose(replace(fused, positions=1, channels_last=True)) == "dense"


@pytest.mark.parametrize("propagate", ["all", "active"])
@pytest.mark.parametrize("geometry", [WIDE, CONV, NARROW, PROJECT])
def test_what_can_go_direct_does_where_that_pays(geometry, propagate):
    direct = replace(geometry, direct=True, propagate=propagate)
    few, most = replace(direct, count=1), replace(direct, count=direct.size - 1)
    assert choose(few) == "direct"
    assert planner.rule.advantage(few) > planner.rule.advantage(direct)
    assert planner.rule.advantage(direct) > planner.rule.advantage(most)


def test_small_linear_layers_do_not_pay_for_going_direct():
    head = Geometry("linear", "cpu", torch.float32, 128, 64, 10, 1, direct=True)
    assert choose(head) == "dense"


def test_two_gradients_save_twice():
    expand = Geometry("conv", "cpu", torch.float32, 16 * 6 * 6, 96, 576, 192, channels_last=True)
    assert choose(expand) == "dense"
    assert choose(replace(expand, propagate="active")) == "packed"
    few_tokens = Geometry("linear", "cpu", torch.float32, 96, 2048, 128, 32)
    assert choose(few_tokens) == "dense"
    assert choose(replace(few_tokens, propagate="active")) == "packed"


def test_rows_that_are_not_zeroed_are_saved_too():
    """One token: no arithmetic to speak of, but a gradient as large as the weight to write."""
    token = Geometry("linear", "cpu", torch.float32, 1, 1024, 1024, 102)
    assert 0.5 < planner.rule.advantage(token) < 1
    assert planner.rule.advantage(replace(token, count=1000)) < 0.05


def test_groups_other_than_depthwise_are_dense():
    assert choose(replace(CONV, groups=4)) == "dense"


def test_a_device_never_reads_the_groups_on_the_host():
    assert choose(replace(DEPTHWISE, device="cuda")) == "dense"


def test_a_device_without_rates_is_treated_as_a_cpu():
    assert choose(replace(WIDE, device="xpu")) == choose(WIDE)
    assert set(planner.RATES) == {"cpu", "cuda"}


def test_only_a_linear_layers_dx_of_all_channels_may_go_direct():
    linear = replace(WIDE, direct=True)
    assert planner.ways(linear) == ("dense", "packed", "direct", "direct+dx")
    others = [
        replace(linear, needed=(False, True, True)),
        replace(linear, propagate="active"),
        replace(CONV, direct=True),
    ]
    assert {planner.ways(geometry) for geometry in others} == {("dense", "packed", "direct")}
