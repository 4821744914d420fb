"""Top-1 accuracy and mean intersection over union, from one confusion matrix."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = 255


class Confusion:
    """Counts ``[classes, classes]``: rows are targets, columns predictions."""

    def __init__(self, classes: int, device: str) -> None:
        self.counts = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def add(self, scores: Tensor, target: Tensor) -> None:
        """Scores ``[N, classes, ...]`` and target classes ``[N, ...]``; 255 is ignored."""
        known = target != IGNORED
        classes = len(self.counts)
        pairs = target[known] * classes + scores.argmax(1)[known]
        self.counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes)

    def top1(self) -> float:
        """Share of all samples, or pixels, that are classified rightly."""
        return float(self.counts.diag().sum() / self.counts.sum().clamp(min=1))

    def miou(self) -> float:
        """Mean over the classes of |both| / |either|; a class nobody names counts nowhere."""
        both = self.counts.diag().double()
        either = self.counts.sum(0) + self.counts.sum(1) - self.counts.diag()
        return float((both / either)[either > 0].mean())
