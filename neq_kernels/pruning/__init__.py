"""Pruning neurons, and removing what was pruned."""

from neq_kernels.pruning.shrink import ShrinkReport, shrink

__all__ = ["ShrinkReport", "shrink"]
