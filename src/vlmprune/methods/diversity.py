"""Greedy max-min diversity, which several methods share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

MATRIX_BYTES = 1 << 30  # the largest matrix of distances that is kept
BLOCK = 128  # rows of it that are computed at once


def unit_rows(features: Tensor) -> Tensor:
    """Rows [n, D] of length 1, in their own precision; one whose length overflows counts as a zero vector."""
    return (features / lengths(features)[:, None]).nan_to_num_()


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


@torch.no_grad()
def most_diverse(features: Tensor, count: int, again: bool = False) -> Tensor:
    """The greedy order of max-min cosine distance.

    The first row is the one whose nearest other row is farthest; each next row is the one farthest from all picked so
    far. Ties go to the lower index; a zero vector is given the length of the smallest normal number. Time O(n^2 D / 2 +
    n count), memory n^2 numbers. Where these take more than `MATRIX_BYTES`, time O(n^2 D / 2 + n count D), memory
    O(n D). A GPU is not waited for in the loop.

    Args:
        features: [n, D], in the precision in which distances are to be computed.
        count: how many rows to pick, at most n.
        again: whether a row may be picked more than once, as happens among exact duplicates.

    Returns:
        Indices in the order in which they are picked, [count].
    """
    directions, n = features / lengths(features)[:, None], len(features)
    matrix = features.new_empty(n, n) if n * n * features.element_size() <= MATRIX_BYTES else None
    farthest = _nearest_others(directions, matrix)
    if matrix is not None and not again:
        matrix.fill_diagonal_(-torch.inf)  # never the farthest again
    if matrix is not None and matrix.is_cpu:
        return _picks_here(_numbers(matrix), _numbers(farthest), count)

    def row_of(pick: Tensor) -> Tensor:
        if matrix is not None:
            return matrix.index_select(0, pick)[0]
        row = _distances(directions[pick], directions)[0]
        return row if again else row.index_fill_(0, pick, -torch.inf)

    return _picks(row_of, farthest, count)


def _picks(row_of: Callable[[Tensor], Tensor], farthest: Tensor, count: int) -> Tensor:
    """The greedy order, without reading a number. `row_of` gives the distances [n] of a pick [1]."""
    picks, nearest = [farthest.argmax(keepdim=True)], torch.full_like(farthest, torch.inf)
    while len(picks) < count:
        picks.append(torch.minimum(nearest, row_of(picks[-1]), out=nearest).argmax(keepdim=True))
    return torch.cat(picks)


def _picks_here(matrix: np.ndarray, farthest: np.ndarray, count: int) -> Tensor:
    """The same on a CPU, where a step in numpy takes a third of the time that its calls of torch take."""
    picks, nearest = [farthest.argmax()], np.full_like(farthest, np.inf)
    while len(picks) < count:
        picks.append(np.minimum(nearest, matrix[picks[-1]], out=nearest).argmax())
    return torch.from_numpy(np.array(picks))


def _numbers(values: Tensor) -> np.ndarray:
    """Half precision as float32, which numpy has for all of it, and which holds the same numbers."""
    return (values.float() if values.element_size() < 4 else values).numpy()


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
