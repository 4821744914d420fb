"""Neurons at equilibrium: found on a probe after every epoch, frozen, thawed when they move."""

from . import selectors
from .history import History
from .memory import Memory
from .report import LayerRow, Report
from .schedule import Schedule
from .tracker import Equilibrium

__all__ = ["Equilibrium", "History", "LayerRow", "Memory", "Report", "Schedule", "selectors"]
