"""Parts of an image with budgets of their own: cutting it into blocks, and sharing a budget out among parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmprune.author import ImageView


def blocks(view: ImageView, rows: int, cols: int) -> list[Tensor]:
    """Token indices of each of rows x cols equal blocks of every frame (or tile), in raster order.

    Where blocks do not divide the grid they differ by one cell a side. A block of which nothing is left is left out.
    Without a grid the tokens are cut into rows * cols runs, the first ones longer by a token.
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
    """The token indices cut into `count` consecutive runs, the first ones longer by a token."""
    return torch.arange(view.n, device=view.slots.device).tensor_split(count)


def fill(counts: Sequence[int], sizes: Sequence[int], keep: int, order: Sequence[int]) -> list[int]:
    """Budgets of parts that add up to `keep`.

    Args:
        counts: what each part should get; at most `keep` together. None gets more than its size.
        sizes: tokens in each part; at least `keep` together.
        order: the parts by right of turn: what is left of `keep` goes round, a token a part with room.
    """
    budgets = [min(pair) for pair in zip(counts, sizes)]
    left = keep - sum(budgets)
    turns = [(turn, rank) for rank, part in enumerate(order) for turn in range(min(left, sizes[part] - budgets[part]))]
    for _, rank in sorted(turns)[:left]:
        budgets[order[rank]] += 1
    return budgets
