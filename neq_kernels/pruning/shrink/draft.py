"""From a traced forward to a plan."""

from __future__ import annotations

from dataclasses import dataclass

from neq_kernels.pruning.shrink import axes_layers, axes_shapes, sites, spreads
from neq_kernels.pruning.shrink.axes import Axes, elementwise, follow
from neq_kernels.pruning.shrink.known import Knowledge, is_pointwise
from neq_kernels.pruning.shrink.plan import Plan
from neq_kernels.pruning.shrink.sites import Site
from neq_kernels.pruning.shrink.spreads import Spread
from neq_kernels.pruning.shrink.trace import Graph, Value


@dataclass(frozen=True)
class Draft:
    """A plan, and what it was made from; ``leaves``: parameters and buffers that it is about."""

    plan: Plan
    axes: Axes
    sites: list[Site]
    spreads: list[Spread]
    leaves: list[Value]


def drafted(
    graph: Graph,
    knowledge: Knowledge,
    opaque: dict[str, str],
    *,
    bold: bool,
    multiple: int,
    hooks: bool,
) -> Draft:
    """The plan for ``graph``, with hooks only where they pay."""
    joined: set[str] = set()
    while True:
        axes, hooked = Axes(bold), spreads.Rules(knowledge, joined)
        pointwise = {call.op: elementwise for call in graph.calls if is_pointwise(call)}
        rules = {
            **pointwise,
            **axes_shapes.RULES,
            **axes_layers.RULES,
            spreads.POSSIBLE: hooked.possible,
            spreads.PRESENT: hooked.present,
        }
        understood = follow(axes, graph, rules, opaque)
        found = sites.find(graph, understood, knowledge, axes, hooks)
        met = [value for value in graph.leaves if value in axes]
        plan = Plan(axes, found, hooked.met, met, multiple)
        unprofitable = plan.unprofitable() - joined
        if not unprofitable:
            return Draft(plan, axes, found, hooked.met, met)
        joined |= unprofitable
