"""Greedy max-min diversity, which several methods share."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(features: Tensor) -> Tensor:
    """Rows [n, D] of length 1, in their own precision; one whose length overflows counts as a zero vector."""
    lengths = features.norm(dim=1, keepdim=True).clamp(min=torch.finfo(features.dtype).tiny)
    return torch.nan_to_num(features / lengths)


def first_alike(rows: Tensor) -> Tensor:
    """For each row [n, D] the number of the first row that is equal to it, [n].

    A matrix product may round the results of equal rows differently. Where ties should go to the lower index, let equal
    rows have the result of the first of them: `product[first_alike(rows)]`.
    """
    group = torch.unique(rows, dim=0, return_inverse=True)[1]
    places = torch.arange(len(rows), device=rows.device)
    return torch.full_like(places, len(rows)).scatter_reduce(0, group, places, "amin")[group]


def most_diverse(features: Tensor, count: int, again: bool = False) -> Tensor:
    """The greedy order of max-min cosine distance.

    The first row is the one whose nearest other row is farthest; each next row is the one farthest from all picked so
    far. Ties go to the lower index; a zero vector is given the length of the smallest normal number. Time O(n^2 D +
    n count), memory n^2 numbers.

    Args:
        features: [n, D], in the precision in which distances are to be computed.
        count: how many rows to pick, at most n.
        again: whether a row may be picked more than once, as happens among exact duplicates.

    Returns:
        Indices in the order in which they are picked, [count].
    """
    unit = unit_rows(features)
    distance = (unit @ unit.T).neg_().add_(1)
    # the smallest is the distance to itself
    nearest = distance.topk(min(2, len(features)), dim=0, largest=False).values[-1]
    picks = []
    for step in range(count):
        pick = nearest.argmax(keepdim=True)
        picks.append(pick)
        row = distance.index_select(0, pick)[0]
        nearest = torch.minimum(nearest, row) if step else row
        if not again:
            nearest = nearest.index_fill(0, pick, float("-inf"))
    return torch.cat(picks)
