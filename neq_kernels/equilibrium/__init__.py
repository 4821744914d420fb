"""Neurons at equilibrium: found on a probe after every epoch, frozen, thawed when they move."""

from . import selectors
from .report import LayerRow, Report
from .tracker import Equilibrium

__all__ = ["Equilibrium", "LayerRow", "Report", "selectors"]
