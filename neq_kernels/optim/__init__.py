"""Optimizers and frozen neurons: ones that step active rows only, and a guard for all others."""

from neq_kernels.optim.adamw import AdamW
from neq_kernels.optim.protect import STATE_POLICY, Protection, protect
from neq_kernels.optim.sgd import SGD

__all__ = ["SGD", "STATE_POLICY", "AdamW", "Protection", "protect"]
