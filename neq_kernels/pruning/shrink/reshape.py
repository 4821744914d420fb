"""Which dimensions before a reshape make up which after it."""

from __future__ import annotations

from collections.abc import Sequence


def groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The finest pairs (dimensions before, dimensions after) of equal products, in order.

    [8, 64, 7, 7] -> [8, 3136] gives [([0], [0]), ([1, 2, 3], [1])]. Dimensions of size 1 may stand
    alone on either side.
    """
    found = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [], []
        p = q = 1
        if i < len(before):
            p, left, i = before[i], [i], i + 1
        if j < len(after):
            q, right, j = after[j], [j], j + 1
        while p != q:
            if p < q:
                p, left, i = p * before[i], [*left, i], i + 1
            else:
                q, right, j = q * after[j], [*right, j], j + 1
        found.append((left, right))
    return found
