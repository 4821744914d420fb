"""One comparison: candidates take turns until one is the winner beyond noise."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

# Timed turns per candidate: enough to tell, and when to stop telling apart what is alike.
ENOUGH, MOST = 4, 8
# A candidate this much slower than another's median at its best is given no further turn.
HOPELESS = 1.5


class Race:
    """Times of candidates at one geometry, in any unit.

    Each candidate's first turn is not timed: kernels are made then, and memory is touched for the
    first time.
    """

    def __init__(self, candidates: Sequence[str]) -> None:
        self.times: dict[str, list[float]] = {name: [] for name in candidates}
        self._turns = dict.fromkeys(candidates, 0)

    def next(self) -> str:
        """Whose turn it is: back and forth, so that a drift of the machine hits all alike."""
        left = self._left()
        fewest = min(self._turns[name] for name in left)
        waiting = [name for name in left if self._turns[name] == fewest]
        chosen = waiting[-1 if fewest % 2 else 0]
        self._turns[chosen] += 1
        return chosen

    def add(self, candidate: str, time: float) -> None:
        """Take in the time of a turn."""
        self.times[candidate].append(time)

    def warms_up(self, candidate: str) -> bool:
        """Whether the candidate's turn just begun is its first."""
        return self._turns[candidate] == 1

    def winner(self) -> str | None:
        """The fastest, once it is faster beyond noise or the turns are spent."""
        left = self._left()
        if len(left) == 1:
            return left[0]
        if any(len(self.times[name]) < ENOUGH for name in left):
            return None
        best = min(left, key=self._median)
        others = [min(self.times[name]) for name in left if name != best]
        clear = all(self._median(best) < other for other in others)
        spent = all(len(self.times[name]) >= MOST for name in left)
        return best if clear or spent else None

    def ms(self) -> dict[str, float]:
        """Median time of each candidate that was timed."""
        return {name: median(times) for name, times in self.times.items() if times}

    def _left(self) -> list[str]:
        medians = [median(times) for times in self.times.values() if times]
        limit = HOPELESS * min(medians) if len(medians) > 1 else float("inf")
        return [name for name, times in self.times.items() if not times or min(times) <= limit]

    def _median(self, name: str) -> float:
        return median(self.times[name])
