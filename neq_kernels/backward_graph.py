"""The graph of a backward as plain numbers: asked again and again without autograd.

Nodes are autograd's, numbered so that a node comes after all that its gradient flows on to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any


class BackwardGraph:
    """Autograd's graph beneath some nodes.

    Attributes:
        outputs: the numbers of the nodes at which the backward starts.
    """

    def __init__(self) -> None:
        self.outputs: list[int | None] = []
        self._number: dict[Any, int] = {}  # holds the nodes, whose identity it needs
        self._next: list[tuple[int, ...]] = []
        self._parameter: list[int | None] = []

    def node(self, grad_fn: Any) -> int | None:
        """The number of autograd's node ``grad_fn``, after all beneath it got theirs."""
        if grad_fn is None:
            return None
        waiting = [grad_fn]
        while waiting:
            node = waiting[-1]
            if node in self._number:
                waiting.pop()
                continue
            children = [child for child, _ in node.next_functions if child is not None]
            missing = [child for child in children if child not in self._number]
            if missing:
                waiting += missing
                continue
            self._number[node] = len(self._next)
            self._next.append(tuple(self._number[child] for child in children))
            variable = getattr(node, "variable", None)
            self._parameter.append(None if variable is None else id(variable))
            waiting.pop()
        return self._number[grad_fn]

    def live(self, trains: Callable[[int], bool]) -> set[int]:
        """Nodes with a parameter beneath them of which ``trains(id(parameter))`` holds."""
        live: set[int] = set()
        for number, (children, parameter) in enumerate(
            zip(self._next, self._parameter, strict=True)
        ):
            if any(child in live for child in children) or (
                parameter is not None and trains(parameter)
            ):
                live.add(number)
        return live

    def reached(self, closed: Collection[int | None]) -> set[int]:
        """Nodes that a gradient from the outputs reaches without passing a ``closed`` one."""
        waiting = [node for node in self.outputs if node is not None and node not in closed]
        reached = set(waiting)
        while waiting:
            for child in self._next[waiting.pop()]:
                if child not in reached and child not in closed:
                    reached.add(child)
                    waiting.append(child)
        return reached
