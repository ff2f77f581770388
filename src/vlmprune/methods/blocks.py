"""An image's tokens by their place: blocks of the grid, neighbours, and how parts share a budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmprune.author import ImageView


def blocks(view: ImageView, rows: int, cols: int) -> list[Tensor]:
    """Token indices of each block, when every frame (or tile) is cut into rows x cols equal blocks, in raster order.

    Blocks that do not divide the grid evenly differ by one cell on a side. A block without any token left is skipped.
    Without a grid the tokens are cut into rows * cols runs, of which the first ones may be longer by one token.
    """
    if view.grid is None:
        return [run for run in runs(view, rows * cols) if len(run)]
    frames, places = view.cells // (view.grid.rows * view.grid.cols), view.cells % (view.grid.rows * view.grid.cols)
    row = places // view.grid.cols * rows // view.grid.rows
    col = places % view.grid.cols * cols // view.grid.cols
    number = (frames * rows + row) * cols + col
    order = torch.argsort(number, stable=True)
    return list(order.split(torch.unique(number, return_counts=True)[1].tolist()))


def runs(view: ImageView, count: int) -> tuple[Tensor, ...]:
    """The token indices cut into `count` consecutive runs, of which the first ones may be longer by one token."""
    return torch.arange(view.n, device=view.slots.device).tensor_split(count)


def fill(counts: Sequence[int], sizes: Sequence[int], keep: int, order: Sequence[int]) -> list[int]:
    """Budgets of parts that add up to `keep`.

    Args:
        counts: what each part should get; together at most `keep`. No part gets more than its size.
        sizes: tokens in each part; together at least `keep`.
        order: the parts in the order in which they share what is left of `keep`: one token to each part with room, in
            turn, until nothing is left.
    """
    budgets = [min(pair) for pair in zip(counts, sizes)]
    left = keep - sum(budgets)
    turns = [(turn, rank) for rank, part in enumerate(order) for turn in range(min(left, sizes[part] - budgets[part]))]
    for _, rank in sorted(turns)[:left]:
        budgets[order[rank]] += 1
    return budgets


def with_neighbours(anchors: list[int], view: ImageView, count: int = 4) -> list[int]:
    """The anchors, then their neighbours that are still present, each once, as token indices.

    Args:
        count: neighbours of an anchor: 4, the cross; 2, those in its row; 8, the square; 0, none.
    """
    cells = view.cells.tolist()
    token = {cell: i for i, cell in enumerate(cells) if cell >= 0}
    steps, size = [-1, 1], max(cells) + 1
    if view.grid is not None:
        cols, size = view.grid.cols, view.grid.rows * view.grid.cols
        steps = [-1, 1, -cols, cols, -cols - 1, -cols + 1, cols - 1, cols + 1]
    found = dict.fromkeys(anchors)
    for cell in [cells[i] for i in anchors if cells[i] >= 0]:
        first = cell - cell % size  # of its frame
        for step in steps[:count]:
            neighbour = min(max(cell + step, first), first + size - 1)
            if neighbour in token:
                found.setdefault(token[neighbour])
    return list(found)
