"""PSP-entropy against counting, sharpness against a dense Hessian."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import neq_kernels as neq
from neq_kernels.pruning import psp_entropy, set_masks, sharpness

pytestmark = pytest.mark.usefixtures("one_thread")


def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 4), nn.Tanh(),
        nn.Linear(4, 3),
    )  # fmt: skip


def batches(sizes=(7, 1, 12), classes=3):
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, 1, 4, 4, generator=generator),
            torch.randint(classes, (n,), generator=generator),
        )
        for n in sizes
    ]


def counted(potentials, labels, classes=3):
    """H of each unit and class: ``potentials`` [samples, units], counted one by one."""
    found = torch.zeros(potentials.shape[1], classes, dtype=torch.float64)
    for u in range(potentials.shape[1]):
        for c in range(classes):
            own = [
                float(p) for p, label in zip(potentials[:, u], labels, strict=True) if label == c
            ]
            p = sum(value > 0 for value in own) / len(own)
            p, n = (min(max(share, 1e-4), 0.9999) for share in (p, 1 - p))
            found[u, c] = -(p * math.log2(p) + n * math.log2(n))
    return found


@pytest.mark.parametrize("per", ["position", "channel"])
def test_entropy_is_counted_over_all_batches(per):
    model, loader = make(), batches()
    images, labels = (torch.cat(part) for part in zip(*loader, strict=True))
    found = psp_entropy(model, loader, per=per)
    assert list(found) == ["0", "3", "5"]
    with torch.no_grad():
        conv = model[0](images)
        hidden = model[3](model[0](images).relu().flatten(1))
    if per == "channel":
        rows = conv.permute(0, 2, 3, 1).reshape(-1, 2)
        wanted = counted(rows, labels.repeat_interleave(4))
    else:
        wanted = counted(conv.flatten(1), labels)
    torch.testing.assert_close(found["0"], wanted)
    torch.testing.assert_close(found["3"], counted(hidden, labels))
    assert model.training


def test_a_class_without_samples_is_nan_and_a_constant_unit_has_next_to_none():
    model = nn.Sequential(nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    found = psp_entropy(model, [(torch.randn(4, 2), torch.tensor([0, 0, 2, 2]))])["0"]
    assert found[:, 1].isnan().all()
    share = 1e-4
    least = -(share * math.log2(share) + (1 - share) * math.log2(1 - share))
    torch.testing.assert_close(found[:, [0, 2]], torch.full((3, 2), least, dtype=torch.float64))


def test_layers_can_be_named():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
    found = psp_entropy(model, batches(), layers=["1"], classes=3)
    assert list(found) == ["1"]
    with pytest.raises(ValueError, match="'bn' matches none"):
        psp_entropy(model, batches(), layers=["bn"])


@pytest.mark.parametrize(("labels", "error", "message"), [
    (torch.tensor([0, 3]), ValueError, r"labels in \[0, 3\).*got 3"),
    (torch.tensor([-1, 0]), ValueError, "got -1"),
    (torch.tensor([0.0, 1.0]), TypeError, "whole numbers"),
    (torch.tensor([[0], [1]]), TypeError, "whole numbers"),
    (torch.tensor([0, 1, 2]), ValueError, "a label per sample"),
])  # fmt: skip
def test_labels_that_do_not_fit(labels, error, message):
    with pytest.raises(error, match=message):
        psp_entropy(make(), [(torch.randn(2, 1, 4, 4), labels)])


def test_entropy_needs_batches_of_one_shape():
    with pytest.raises(ValueError, match="at least one batch"):
        psp_entropy(make(), [])
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    loader = [(torch.randn(2, 1, n, n), torch.tensor([0, 1])) for n in (4, 5)]
    with pytest.raises(ValueError, match="per='channel'"):
        psp_entropy(net, loader)
    assert psp_entropy(net, loader, per="channel")["0"].shape == (2, 2)


def dense_hessian(model, loader, kept=None):
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in parameters.values()]

    def mean_loss(flat):
        parts = {
            name: part.view_as(p)
            for (name, p), part in zip(parameters.items(), flat.split(sizes), strict=True)
        }
        total = sum(
            F.cross_entropy(torch.func.functional_call(model, parts, x), y, reduction="sum")
            for x, y in loader
        )
        return total / sum(len(y) for _, y in loader)

    flat = torch.cat([p.flatten() for p in parameters.values()])
    hessian = torch.autograd.functional.hessian(mean_loss, flat)
    return hessian if kept is None else hessian[kept][:, kept]


def smooth():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    return model, [(x.double(), y) for x, y in batches()]


def test_sharpness_is_the_dense_hessians():
    model, loader = smooth()
    hessian = dense_hessian(model, loader)
    found = sharpness(model, loader, iterations=500, tolerance=1e-10, probes=400)
    assert found.converged
    assert found.eigenvalue == pytest.approx(torch.linalg.eigvalsh(hessian)[-1].item(), rel=1e-6)
    assert found.trace == pytest.approx(hessian.trace().item(), abs=4 * found.trace_error)
    assert 0 < found.trace_error < 0.2 * abs(found.trace)


def test_a_saddles_largest_eigenvalue_is_not_its_largest_in_magnitude():
    weight = nn.Linear(3, 1, bias=False).double()
    curvature = torch.tensor([[-5.0, 1.0, 2.0]], dtype=torch.float64)

    def loss(output, labels):
        return (weight.weight.square() * curvature).sum() / 2 + 0 * output.sum()

    loader = [(torch.zeros(2, 3).double(), torch.zeros(2))]
    found = sharpness(weight, loader, loss, iterations=300, tolerance=1e-12, probes=2)
    assert found.eigenvalue == pytest.approx(2, rel=1e-5)
    # Random signs leave nothing to chance where the Hessian is diagonal.
    assert found.trace == pytest.approx(-2, rel=1e-12)
    assert found.trace_error == pytest.approx(0, abs=1e-12)


def test_pruned_parameters_are_no_directions_and_frozen_ones_are():
    model, loader = smooth()
    neq.convert(model)
    mask = torch.rand(3, 16) < 0.5
    with torch.no_grad():
        model[1].weight.mul_(mask)
    set_masks(model, {"1.weight": mask})
    neq.set_active(model, {"1": [0], "3": []})
    kept = torch.cat([mask.flatten(), torch.ones(3 + 9 + 3, dtype=torch.bool)])
    plain, _ = smooth()
    plain.load_state_dict(model.state_dict())
    wanted = torch.linalg.eigvalsh(dense_hessian(plain, loader, kept))[-1].item()
    found = sharpness(model, loader, iterations=500, tolerance=1e-10, probes=1)
    assert found.eigenvalue == pytest.approx(wanted, rel=1e-6)
    assert math.isnan(found.trace_error)
    assert neq.get_active(model)["1"].index.tolist() == [0]
    assert neq.get_active(model)["3"].is_empty


def test_sharpness_refuses():
    model, loader = smooth()
    with pytest.raises(TypeError, match="got an iterator"):
        sharpness(model, iter(loader))
    for name in ("iterations", "probes", "tolerance"):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            sharpness(model, loader, **{name: 0})
    with pytest.raises(ValueError, match="at least one batch"):
        sharpness(model, [])
    with pytest.raises(ValueError, match="loss: expected a finite one"):
        sharpness(model, loader, lambda output, y: output.sum() * math.nan)
    with pytest.raises(ValueError, match="require a gradient"):
        sharpness(model.requires_grad_(False), loader)
