"""Pruning: regularisers that shrink what is not felt, schedules that zero it, measures of both."""

from .lobster import LOBSTER
from .masks import apply_masks, get_masks, keep_zeros, set_masks
from .metrics import share_removed, share_zeroed
from .psp_entropy import psp_entropy
from .schedules import Gradual, OneShot, Update
from .serene import SeReNe
from .sharpness import Sharpness, sharpness
from .threshold import Pruned, threshold_search

__all__ = [
    "LOBSTER",
    "Gradual",
    "OneShot",
    "Pruned",
    "SeReNe",
    "Sharpness",
    "Update",
    "apply_masks",
    "get_masks",
    "keep_zeros",
    "psp_entropy",
    "set_masks",
    "share_removed",
    "share_zeroed",
    "sharpness",
    "threshold_search",
]
