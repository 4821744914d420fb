"""Which way a layer's backward is computed: the fastest measured on real steps, else by a rule.

Candidates are compared where the training itself needs their result, so that only the loser's
regret costs; a bounded number of turns, then never again. ``NEQ_PLAN=off`` leaves it to the rule.
"""

from neq_kernels.planner.choice import LayerPlan, Plan, plan, scales, settled, start
from neq_kernels.planner.clock import Settled
from neq_kernels.planner.rule import RATES, Geometry, choose, ways

__all__ = [
    "RATES",
    "Geometry",
    "LayerPlan",
    "Plan",
    "Settled",
    "choose",
    "plan",
    "scales",
    "settled",
    "start",
    "ways",
]
