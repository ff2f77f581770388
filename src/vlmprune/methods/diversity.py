"""Greedy max-min diversity, which several methods share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmprune.methods.max_min import picks_here, picks_there

MATRIX_BYTES = 1 << 30  # the largest matrix of distances that is kept
BLOCK = 128  # rows of it that are computed at once


def unit_rows(features: Tensor) -> Tensor:
    """Rows [n, D] of length 1, in their own precision; one whose length overflows counts as a zero vector."""
    return _directions(features).nan_to_num_()


def lengths(features: Tensor) -> Tensor:
    """[n] of rows [n, D], each at least the smallest normal number."""
    return features.norm(dim=1).clamp_(min=torch.finfo(features.dtype).tiny)


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
    far. Ties go to the lower index; a zero vector is given the length of the smallest normal number. Time O(n^2 D / 2 +
    n count), memory n^2 numbers. Where these take more than `MATRIX_BYTES`, time O(n^2 D / 2 + n count D), memory
    O(n D). A GPU is not waited for in the loop; where Triton is installed, it is sent the loop as one kernel.

    Args:
        features: [n, D], in the precision in which distances are to be computed.
        count: how many rows to pick, 1 to n.
        again: whether a row may be picked more than once, as happens among exact duplicates.

    Returns:
        Indices in the order in which they are picked, [count].
    """
    return most_diverse_of_each([features], count, again)[0]


@torch.no_grad()
def most_diverse_of_each(sets: Sequence[Tensor], count: int, again: bool = False) -> list[Tensor]:
    """What `most_diverse` gives of each of several sets of rows [n, D], n the same for all, in one loop over picks.

    The distances are computed set by set, so that they are rounded as those of the set alone. On a GPU the loop is
    common to as many sets as have their distances in `MATRIX_BYTES`. On a CPU one set follows another in the same
    memory: a common loop would take longer, as it leaves the cache.
    """
    n, size = len(sets[0]), len(sets[0]) ** 2 * sets[0].element_size()
    if not 1 <= count <= n:
        raise ValueError(f"count={count}: of {n} rows, 1 to {n} can be picked.")
    if size > MATRIX_BYTES:
        return [_without_matrix(features, count, again) for features in sets]
    here = is_here(sets[0])
    at_once = 1 if here else min(len(sets), MATRIX_BYTES // size)
    matrices, picks = sets[0].new_empty(at_once, n, n), list[Tensor]()
    for first in range(0, len(sets), at_once):
        some = sets[first : first + at_once]
        farthest = [_nearest_others(_directions(one), own) for one, own in zip(some, matrices, strict=False)]
        if not again:
            matrices.diagonal(dim1=1, dim2=2).fill_(-torch.inf)  # never the farthest again
        if here:
            picks.append(picks_here(matrices[0], farthest[0], count))
        else:
            picks += picks_there(matrices[: len(some)], torch.stack(farthest), count)
    return picks


def is_here(rows: Tensor) -> bool:
    """Whether they are in the memory of the CPU, where numbers are read at once and steps need not be started."""
    return rows.is_cpu


def _without_matrix(features: Tensor, count: int, again: bool) -> Tensor:
    """The greedy order, with the distances of each pick computed again.

    On a GPU these are operations of torch, too: a step multiplies n D numbers, which is work for the whole GPU, and the
    one program of a kernel would take far longer.
    """
    directions = _directions(features)
    farthest = _nearest_others(directions, None)
    picks, nearest = [farthest.argmax(keepdim=True)], torch.full_like(farthest, torch.inf)
    while len(picks) < count:
        row = _distances(directions[picks[-1]], directions)[0]
        row = row if again else row.index_fill_(0, picks[-1], -torch.inf)
        picks.append(torch.minimum(nearest, row, out=nearest).argmax(keepdim=True))
    return torch.cat(picks)


def _directions(features: Tensor) -> Tensor:
    """The rows [n, D] with length 1, not a number where it is too small or too large for that."""
    return features / lengths(features)[:, None]


def _distances(some: Tensor, directions: Tensor) -> Tensor:
    """[m, n] cosine distances of directions, one without a direction has the distance 1 to all."""
    return (some @ directions.T).neg_().add_(1).nan_to_num_(1)


def _nearest_others(directions: Tensor, matrix: Tensor | None) -> Tensor:
    """[n] the distance of each row to the nearest other one; `matrix` [n, n] is filled with all distances.

    The distance of two rows is computed once, for both.
    """
    nearest = directions.new_full((len(directions),), torch.inf)
    for first in range(0, len(directions), BLOCK):
        block = _distances(directions[first : first + BLOCK], directions[first:])
        last = first + len(block)
        later = block[:, len(block) :]
        if matrix is not None:
            matrix[first:last, first:], matrix[last:, first:last] = block, later.T
        block.fill_diagonal_(torch.inf)
        nearest[first:last] = torch.minimum(nearest[first:last], block.amin(1))
        if last < len(nearest):
            nearest[last:] = torch.minimum(nearest[last:], later.amin(0))
    return nearest
