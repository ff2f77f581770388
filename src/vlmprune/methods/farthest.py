"""Farthest-point sampling: rows that are spread over all of a set of vectors."""

from __future__ import annotations

import torch
from torch import Tensor


def farthest_first(rows: Tensor, first: Tensor, count: int, again: bool = False) -> Tensor:
    """Pick `first`, then one after another the row whose nearest picked row is farthest away (Euclidean).

    Ties go to the lower index. Time O(count n D), memory O(n D).

    Args:
        rows: [n, D], in the precision in which distances are to be computed.
        first: [] index of the row to begin with.
        count: how many rows to pick, at most n.
        again: whether a row may be picked more than once, as happens if there are fewer different rows than `count`.

    Returns:
        Indices in the order in which they are picked, [count].
    """
    pick, picks = first.reshape(1), list[Tensor]()
    nearest = rows.new_full((len(rows),), float("inf"))
    for _ in range(count):
        picks.append(pick)
        distance = (rows - rows[pick]).square().sum(1)
        nearest = torch.minimum(nearest, distance.nan_to_num(0.0))  # a row that is not finite is near to all
        if not again:
            nearest = nearest.index_fill(0, torch.cat(picks), -1.0)
        pick = nearest.argmax(keepdim=True)
    return torch.cat(picks) if picks else pick[:0]
