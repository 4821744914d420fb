"""Sparse-backward layers for PyTorch: compute only the gradient rows of neurons still learning."""

from neq_kernels import backends, optim, pruning
from neq_kernels.active import ActiveSet
from neq_kernels.convert import convert, get_active, revert, set_active
from neq_kernels.equilibrium import Equilibrium, Schedule, selectors
from neq_kernels.flops import flops
from neq_kernels.optim import protect
from neq_kernels.profile import profile
from neq_kernels.report import report

__all__ = [
    "ActiveSet",
    "Equilibrium",
    "Schedule",
    "backends",
    "convert",
    "flops",
    "get_active",
    "optim",
    "profile",
    "protect",
    "pruning",
    "report",
    "revert",
    "selectors",
    "set_active",
]

backends.requested_by_environment()
