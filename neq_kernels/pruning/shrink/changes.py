"""What a plan does to each layer, and why it keeps a neuron that is all zero."""

from __future__ import annotations

from collections import Counter

from torch import Tensor

from neq_kernels.pruning.shrink.plan import READS, Plan
from neq_kernels.pruning.shrink.report import LayerChange
from neq_kernels.pruning.shrink.sites import Site


def changes(sites: list[Site], plan: Plan) -> list[LayerChange]:
    """The layers of ``sites``, before and after."""
    live: dict[int, str] = {}
    for site in reversed(sites):
        if site.outputs is not None:
            classes: Tensor = plan.classes(site.outputs[~site.zero_rows])
            live.update((root, site.name) for root in classes.tolist())
    return [_change(site, plan, live) for site in sites if site.is_layer]


def _change(site: Site, plan: Plan, live: dict[int, str]) -> LayerChange:
    zero = site.zero_rows
    rows = plan.kept(site.outputs, len(zero))
    inputs = plan.kept(site.inputs, len(site.mask))
    kept = Counter(
        _why(site, row, plan, live) for row in (zero & rows).nonzero().flatten().tolist()
    )
    return LayerChange(
        site.name,
        neurons=(len(zero), int(rows.sum())),
        inputs=(len(inputs), int(inputs.sum())),
        zero=int(zero.sum()),
        kept=kept,
    )


def _why(site: Site, row: int, plan: Plan, live: dict[int, str]) -> str:
    """Why the zero neuron ``row`` stayed: ``live`` names a layer with a live neuron per class."""
    if site.outputs is None:
        return f"{site.name} has no other neuron, or its size is given"
    root = int(plan.classes(site.outputs[row]))
    reason = plan.reason(root)
    if root in live and reason.endswith(READS.format("")):
        return f"summed with, or otherwise joined to, live channels of {live[root]}; {reason}"
    return reason
