import warnings

import pytest
import torch
from torch import nn

import neq_kernels as neq

X = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)
    )


def quiet_report(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return neq.report(model)


# 2 * products of a batch of 2: 2 * 3 * 3 outputs of 4 channels from 9 weights; 36 inputs to 5.
CONV, LINEAR = 2 * (2 * 9) * 4 * 9, 2 * 2 * 36 * 5


@pytest.mark.parametrize(
    ("exclude", "covered"),
    [
        ((), 1.0),
        ("4", CONV / (CONV + LINEAR)),
        ("0", LINEAR / (CONV + LINEAR)),
        (("0", "4"), 0.0),
    ],
)
def test_coverage_is_the_share_of_the_products(exclude, covered):
    model = neq.convert(net(), exclude=exclude)
    model(X)
    assert quiet_report(model).coverage == pytest.approx(covered)


def test_coverage_counts_what_no_module_computes():
    """The head's product is a plain matmul: 2 * 2 * 3 * 4 of the layer against 2 * 2 * 4 * 5."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(3, 4)
            self.head = nn.Parameter(torch.randn(4, 5))

        def forward(self, x):
            return self.body(x) @ self.head

    model = neq.convert(Net())
    model(torch.randn(2, 3))
    with pytest.warns(UserWarning, match=r"only 38% of the backward's FLOPs"):
        report = neq.report(model)
    assert report.coverage == pytest.approx(48 / (48 + 80))
    assert report.skipped == {"": "Net is not a layer whose neurons can be frozen"}
    assert "skipped (the model): Net" in str(report)


def test_later_forwards_do_not_add_to_the_coverage():
    model = neq.convert(net(), exclude="4")
    for _ in range(3):
        model(X)
        assert quiet_report(model).coverage == pytest.approx(CONV / (CONV + LINEAR))


def test_coverage_is_unknown_before_a_forward_and_after_one_that_raised():
    model = neq.convert(net())
    assert neq.report(model).coverage is None
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 1, 5, 5))
    report = neq.report(model)
    assert report.coverage is None
    assert "unknown before the first eager forward" in str(report)
    model(X)
    assert neq.report(model).coverage == 1


@pytest.mark.parametrize(("width", "warns"), [(7, True), (8, False)])
def test_warns_below_80_percent(width, warns):
    """The skipped layer has 2 of 2 + width outputs from the same 3 inputs: 0.78, 0.8."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.big, self.small = nn.Linear(3, width), nn.Linear(3, 2)

        def forward(self, x):
            return self.big(x).sum() + self.small(x).sum()

    model = neq.convert(Net(), exclude="small")
    model(torch.randn(2, 3))
    if warns:
        with pytest.warns(UserWarning, match=r"only 78% .* in layers whose neurons can freeze"):
            neq.report(model)
    else:
        assert neq.report(model).coverage == pytest.approx(0.8)


def test_rows_say_what_each_layer_does():
    model = neq.convert(net(), propagate="active")
    model[4].propagate = "all"
    model(X)
    paths = {row.name: row.path for row in neq.report(model).layers}
    assert set(paths.values()) == {"plain torch: all active"}
    neq.set_active(model, {"0": [0], "1": [0, 1], "4": []})
    rows = {row.name: row for row in neq.report(model).layers}
    assert (rows["0"].kind, rows["0"].neurons, rows["0"].active) == ("Conv2d", 4, 1)
    assert (rows["1"].kind, rows["1"].neurons, rows["1"].active) == ("BatchNorm2d", 4, 2)
    assert [row.propagate for row in rows.values()] == ["active", "active", "all"]
    assert rows["0"].path == "no backward yet"
    assert rows["1"].path.startswith("masked")
    assert rows["4"].path.startswith("none")
    model(X).sum().backward()
    text = str(neq.report(model))
    assert text.startswith("share of backward FLOPs covered: 100.0%; 3 layers converted, 0 skipped")
    assert "1/4" in text


def test_the_path_of_the_last_backward(path):
    model = neq.convert(net())
    neq.set_active(model, {"0": [0], "4": [1, 2]})
    with neq.backends.use("torch"):
        model(X).sum().backward()
        rows = {row.name: row.path for row in neq.report(model).layers}
    expected = "dense, frozen rows zeroed" if path == "dense" else f"{path} (torch)"
    assert rows["0"].startswith(expected)
    assert rows["4"].startswith(expected)
    neq.set_active(model, {"0": [1]})
    assert neq.report(model).layers[0].path == "no backward yet"


def test_layers_that_no_gradient_reaches():
    model = neq.convert(
        nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2))
    )
    model(torch.randn(2, 3))
    assert neq.report(model).unreached == ()
    neq.set_active(model, {"2": []})
    model(torch.randn(2, 3))
    assert neq.report(model).unreached == ()
    model[2].propagate = "active"
    model(torch.randn(2, 3))
    report = neq.report(model)
    assert report.unreached == ("0", "1")
    assert "no gradient reaches 0" in str(report)
    assert "no gradient reaches 1" in str(report)
    neq.set_active(model, {"2": [0]})
    model(torch.randn(2, 3))
    assert neq.report(model).unreached == ()


def test_a_path_around_the_cut_still_reaches():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.branch = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            x = self.first(x)
            return {"y": x + self.branch(x)}

    model = neq.convert(Residual(), propagate="active")
    neq.set_active(model, {"branch": []})
    model(torch.randn(2, 3))
    assert neq.report(model).unreached == ()


def test_layers_above_the_cut_in_another_branch_are_named():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.top = (nn.Linear(3, 3) for _ in range(3))

        def forward(self, x):
            return self.top(self.left(x)), self.right(x)

    model = neq.convert(Fork(), propagate="active")
    neq.set_active(model, {"top": []})
    model(torch.randn(2, 3))
    assert neq.report(model).unreached == ("left",)


def test_the_report_of_a_plain_model_is_empty():
    report = neq.report(net())
    assert (report.coverage, report.layers, report.skipped) == (None, (), {})
