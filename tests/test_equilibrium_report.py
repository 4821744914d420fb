import pytest

from neq_kernels.equilibrium import LayerRow, Report

SMALL = (
    LayerRow("conv1", "Conv2d", 16, 4, 0.25),
    LayerRow("bn1", "BatchNorm2d", 16, 16, 0.0),
    LayerRow("aux.proj", "Linear", 8, 0, None, "did not run in the probe"),
)


def report(layers=SMALL, **changes):
    values = dict(
        epoch=3,
        layers=layers,
        excluded=("fc",),
        head="fc",
        warming_up=False,
        seconds=0.5,
        share=0.25,
    )
    return Report(**values | changes)


def test_totals():
    assert (report().neurons, report().frozen, report().frozen_share) == (40, 20, 0.5)


def test_small_table():
    assert str(report()).splitlines() == [
        "Equilibrium at epoch 3: 20 of 40 neurons frozen (50.0%)",
        "layer    kind              neurons   frozen   share mean |v|",
        "conv1    Conv2d                 16        4   25.0% 2.50e-01",
        "bn1      BatchNorm2d            16       16  100.0% 0.00e+00",
        "aux.proj Linear                  8        0    0.0% -",
        "Active, did not run in the probe: aux.proj",
        "Not measured: fc (the last Linear)",
        "Probe: 0.5 s, 25.0% of the time since the last update",
    ]


def test_titles_and_footers():
    assert "recorded only" in str(report(epoch=0))
    assert "warming up" in str(report(warming_up=True))
    assert str(report(share=None)).endswith("Probe: 0.5 s")
    assert "Not measured: a, b\n" in str(report(excluded=("a", "b"), head=None))
    assert "Not measured" not in str(report(excluded=(), head=None))


def deep(blocks, units):
    return tuple(
        LayerRow(f"layer{b}.{u}.{name}", kind, 10, u % 11, float(u), "a reason" if u == 0 else None)
        for b in range(blocks)
        for u in range(units)
        for name, kind in (("conv", "Conv2d"), ("norm", "BatchNorm2d"))
    )


def test_long_models_are_summed_up_by_blocks():
    rows = deep(4, 30)
    text = str(report(rows))
    assert "layer0.* 30 Conv2d             300      138   46.0% 1.45e+01" in text
    assert text.count("30 Conv2d") == 4
    assert text.count("30 BatchNorm2d") == 4
    assert "Active, a reason: layer0.0.conv, layer0.0.norm, layer1.0.conv" in text


def test_no_more_depth_is_given_up_than_needed():
    lines = report(deep(2, 8)).table(max_rows=32).splitlines()
    assert sum(line.startswith("layer") for line in lines) == 1 + 32
    for max_rows in (31, 4):
        lines = report(deep(2, 8)).table(max_rows).splitlines()
        assert sum(line.startswith("layer") for line in lines) == 1 + 4


def test_flat_models_are_summed_up_whole():
    rows = tuple(LayerRow(str(i), "Linear", 2, 1, None) for i in range(50))
    assert "all 50 Linear             100       50   50.0% -" in str(report(rows))


@pytest.mark.parametrize("layers", [9, 999])
def test_no_line_is_wider_than_a_page(layers):
    name = ".".join(["a_long_module_name"] * 9)
    rows = tuple(
        LayerRow(f"{name}.{i}", "BatchNorm2d", 10**5 - 1, 10**5 - 1, 1e-3, "odd")
        for i in range(layers)
    )
    text = str(report(rows, excluded=(name, name)))
    assert max(map(len, text.splitlines())) <= 100


def test_of_a_long_name_the_end_is_shown():
    name = "encoder." * 8 + "dense"
    assert "\n..." + name[-45:] + " Linear" in str(report((LayerRow(name, "Linear", 1, 0, 0.0),)))
