"""The cost function of the Triton kernels: which tile and which split it picks, and why."""

import math
from dataclasses import replace

import pytest

from neq_kernels.kernels import configuration as c
from neq_kernels.kernels.device import A100, B200, H200, KNOWN, RTX_3090, Device, nearest

LOADS = (c.WIDE, c.BESIDE, c.APART)


def half(rows, columns, depth, **options):
    return c.Product("half", 2, rows, columns, depth, **options)


# GPT-2 medium's and ViT-B's MLP, ResNet-50's 1x1, a tiny head; a tenth to all of the rows.
SHAPES = [(4096, 1024, 8192), (3072, 768, 12608), (512, 2048, 6272), (10, 64, 128)]
PRODUCTS = [
    c.Product(arithmetic, 2 if arithmetic == "half" else 4, max(int(rows * share), 8), *rest)
    for arithmetic in c.TILES
    for rows, *rest in SHAPES
    for share in (0.05, 0.1, 0.25, 1.0)
]


@pytest.mark.parametrize("device", KNOWN, ids=lambda d: f"sm_{d.capability[0]}{d.capability[1]}")
def test_what_is_chosen_fits_the_device(device):
    for product in PRODUCTS:
        for rows in LOADS:
            for columns in LOADS:
                one = replace(product, row_load=rows, column_load=columns)
                tile = c.choose(one, device).tile
                assert tile.shared(one.itemsize) <= device.shared
                assert tile.least <= device.capability
                assert tile.gathers or rows is c.WIDE
                assert tile.scatters or columns is c.WIDE


@pytest.mark.parametrize("device", [A100, H200, B200], ids=["A100", "H200", "B200"])
def test_no_prediction_beats_the_roofline_and_none_is_absurd(device):
    for product in PRODUCTS:
        best = c.cost(product, c.choose(product, device), device)
        flops = 2 * product.rows * product.columns * product.depth
        arithmetic = flops / (device.flops[product.arithmetic] * device.processors)
        moved = product.itemsize * product.depth * (product.rows + product.columns)
        floor = max(arithmetic, moved / device.bandwidth)
        assert floor <= best <= 8 * floor + 20_000


def test_a_few_rows_of_a_long_sum_are_split():
    few = half(104, 1024, 8192)
    chosen = c.choose(few, H200)
    assert chosen.split > 1
    whole = c.Configuration(chosen.tile, 1)
    assert c.cost(few, chosen, H200) < 0.5 * c.cost(few, whole, H200)


def test_what_fills_the_device_is_not_split():
    chosen = c.choose(half(4096, 4096, 8192), H200)
    assert chosen == c.Configuration(c.TILES["half"][-1], 1)
    assert c.choose(half(4096, 4096, 8192), A100).tile == c.TILES["half"][-2]


def test_what_no_second_kernel_adds_is_not_split():
    assert c.choose(half(104, 1024, 8192, splittable=False), H200).split == 1


def test_few_rows_take_a_tile_of_few_rows():
    assert c.choose(half(8, 1024, 8192), H200).tile.rows == 16
    assert c.choose(half(8, 1024, 8192), H200).split > 1


def test_gathering_is_dearer_where_it_loads_single_elements():
    for product in PRODUCTS:
        for tile in c.TILES[product.arithmetic]:
            configuration = c.Configuration(tile)
            times = [c.cost(replace(product, row_load=load), configuration, H200) for load in LOADS]
            assert times == sorted(times)


def test_packing_is_for_what_repays_it():
    small, large = half(16, 64, 256), half(1024, 4096, 16384)
    for product, size, expected in ((small, 64, "gathered"), (large, 4096, "packed")):
        moved = product.depth * (product.rows + size) * 2
        gathered = replace(product, row_load=c.APART)
        assert c.cheaper_form((gathered,), (product,), moved, H200) == expected
    assert c.cheaper_form((large,), (large,), 1, H200) == "gathered"


def test_more_of_anything_is_never_cheaper():
    base = half(256, 1024, 8192)
    before = c.cost(base, c.choose(base, H200), H200)
    for more in ({"rows": 512}, {"columns": 2048}, {"depth": 16384}, {"batch": 2}):
        grown = replace(base, **more)
        assert c.cost(grown, c.choose(grown, H200), H200) >= before


def test_the_terms_of_the_cost():
    """One program, so one wave: its steps, each arithmetic and a wait, and the program's own."""
    tile = c.Tile(64, 128, 64, 4, 4)
    product = half(64, 128, 64 * 10)
    step = 2 * 64 * 128 * 64 / (H200.flops["half"] * c.REACHED)
    loaded = 64 * (64 + 128) * 2 / H200.cache
    expected = 10 * (max(step, loaded) + c.STEP) + c.PROGRAM
    assert c.cost(product, c.Configuration(tile), H200) == pytest.approx(expected)
    # Split in two: half the steps, and a second kernel that writes and reads the partial sums.
    second = c.KERNEL + 2 * 2 * 64 * 128 * 4 / H200.bandwidth
    expected = 5 * (max(step, loaded) + c.STEP) + c.PROGRAM + second
    assert c.cost(product, c.Configuration(tile, 2), H200) == pytest.approx(expected)
    # Programs that share a multiprocessor share its arithmetic, not their waiting.
    resident = min(H200.shared // tile.shared(2), 16 // tile.warps)
    full = half(64 * resident * H200.processors, 128, 640)
    expected = 10 * max(resident * max(step, loaded), max(step, loaded) + c.STEP) + c.PROGRAM
    assert c.cost(full, c.Configuration(tile), H200) == pytest.approx(expected)


@pytest.mark.parametrize("split", c.SPLITS)
def test_spans_cover_the_sum_in_whole_steps(split):
    tile = c.TILES["half"][2]
    for depth in (0, 1, 63, 64, 65, 1000, 8192):
        span = c.Configuration(tile, split).span(depth)
        assert span % tile.depth == 0
        assert span > 0
        assert span * split >= depth
        assert math.ceil(depth / span) <= split


def test_instructions_bound_what_loads_single_elements():
    """A program alone: its threads' own steps, and 8 instructions for each element of one side."""
    tile = c.Tile(64, 64, 64, 4, 3)
    product = half(64, 64, 640, row_load=c.BESIDE)
    issued = 128 * c.STEP_INSTRUCTIONS + 64 * 64 * (8 + 1)
    assert c.instructions(product, tile) == issued
    step = issued / (128 * H200.clock * c.REACHED)
    expected = 10 * (step + c.STEP) + c.PROGRAM
    assert c.cost(product, c.Configuration(tile), H200) == pytest.approx(expected)


def test_nothing_fits_a_device_without_shared_memory():
    poor = Device((9, 0), 1.0, 1, 1 << 10, H200.flops, 1.0, 1.0)
    with pytest.raises(ValueError, match="device: expected one whose programs have shared memory"):
        c.choose(half(64, 64, 64), poor)


def test_an_unknown_device_is_rated_like_the_nearest_below():
    assert nearest((8, 7)) is RTX_3090
    assert nearest((9, 9)) is H200
    assert nearest((7, 5)) is A100


def test_buckets_keep_the_choice():
    """The same tile and split for every count of a bucket: nothing is compiled anew within it."""
    from neq_kernels.active import bucket

    chosen = {count: c.choose(half(bucket(count), 1024, 8192), H200) for count in range(97, 113)}
    assert len(set(chosen.values())) == 1
