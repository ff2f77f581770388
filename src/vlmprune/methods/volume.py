"""Greedy search for vectors that span the largest volume: the likeliest subset of a determinantal point process."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmprune.methods.volume_search import AheadSearch, Search

TRUSTED = 1e-3  # as a share of a vector's own d at the start: what is left below it may be float32's rounding


@torch.no_grad()
def largest_volume(rows: Tensor, lengths: Tensor, count: int) -> Tensor:
    """The greedy order in which vectors v make the determinant of their Gram matrix largest.

    v_i has the direction of row x_i and the length l_i. d_i = l_i^2 at first. Pick argmax d; with q the part of the
    pick that is orthogonal to all earlier picks, of length 1, subtract (v_i q)^2 from each d_i. Once the picks span
    all vectors, the longest of the others follow. Ties go to the lower index. Time O(n count D + count^2 D), memory
    O((n + count) D): there is no Gram matrix.

    This is done in float32, and again in float64 if a pick is so nearly spanned by earlier ones that float32 cannot
    tell what is left of it.

    Args:
        rows: x [n, D] float32; a row that is not finite counts as a zero vector.
        lengths: l [n], not negative.
        count: how many to pick, at most n.

    Returns:
        Indices in the order in which they are picked, [count].
    """
    search = _search(rows, lengths.to(rows.dtype), count)
    enough = (search.lefts > TRUSTED * search.whole[search.picks]) & search.real
    if bool(enough.all()):  # the one number that is read, after the loop
        return search.picks
    search = _search(rows.double(), lengths.double(), count)
    return _filled(search.picks, search.real, lengths)


def _filled(picks: Tensor, real: Tensor, lengths: Tensor) -> Tensor:
    """The picks that are `real` [count], and the longest of the other vectors instead of the rest."""
    free = lengths.scatter(0, picks, torch.where(real, -torch.inf, lengths[picks]))
    others = torch.sort(free, descending=True, stable=True).indices
    return torch.where(real, picks, others[((~real).cumsum(0) - 1).clamp(min=0)])


def _search(rows: Tensor, lengths: Tensor, count: int) -> Search:
    search = (AheadSearch if rows.is_cpu else Search)(rows, lengths, count)
    search.run()
    return search
