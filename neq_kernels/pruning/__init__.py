"""Pruning: regularisers that weaken what is not felt, schedules that zero it, measures of both, and
the removal of neurons that are zero."""

from .lobster import LOBSTER
from .masks import apply_masks, get_masks, keep_zeros, set_masks
from .metrics import share_removed, share_zeroed
from .psp_entropy import psp_entropy
from .schedules import Gradual, OneShot, Update
from .serene import SeReNe
from .sharpness import Sharpness, sharpness
from .shrink import ShrinkReport, shrink
from .threshold import Pruned, threshold_search

__all__ = [
    "LOBSTER",
    "Gradual",
    "OneShot",
    "Pruned",
    "SeReNe",
    "Sharpness",
    "ShrinkReport",
    "Update",
    "apply_masks",
    "get_masks",
    "keep_zeros",
    "psp_entropy",
    "set_masks",
    "share_removed",
    "share_zeroed",
    "sharpness",
    "shrink",
    "threshold_search",
]
