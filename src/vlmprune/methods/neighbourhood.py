"""Places of tokens in the picture: anchors from every small cell, and the weights of what lies around them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlmprune.author import ImageView, top_k
from vlmprune.methods.tiles import canvas_of, whole_tile


class Places(NamedTuple):
    """Tokens that lie on one grid.

    Attributes:
        tokens: [m] indices into the view.
        row, col: [m] on the grid.
        rows, cols: its size.
    """

    tokens: Tensor
    row: Tensor
    col: Tensor
    rows: int
    cols: int

    @property
    def diagonal(self) -> float:
        """The largest distance of two cells of the grid, of which an odd side is made even."""
        return math.hypot(self.rows + self.rows % 2 - 1, self.cols + self.cols % 2 - 1)


def places_of(view: ImageView) -> list[Places]:
    """The grids of an image on which tokens are left: each frame or tile, or the whole image and the canvas of tiles.

    The canvas is counted from its first row and column that are not padding. Without a grid all tokens are in one row.
    """
    everything = torch.arange(view.n, device=view.slots.device)
    if view.grid is None:
        return [Places(everything, torch.zeros_like(everything), everything, 1, view.n)]
    rows, cols, _ = view.grid
    canvas = canvas_of(view) if whole_tile(view) is not None else None
    frame = view.cells // (rows * cols)
    if canvas is not None:
        frame = frame.clamp(max=1)
    parts = [everything[frame == number] for number in frame.unique()]
    found = [Places(own, view.cells[own] // cols % rows, view.cells[own] % cols, rows, cols) for own in parts]
    if canvas is not None:
        row, col = canvas.row - canvas.row.min(), canvas.col - canvas.col.min()
        found[-1] = Places(canvas.tokens, row, col, int(row.max()) + 1, int(col.max()) + 1)
    return found


def by_cell(score: Tensor, places: Places, keep: int, quota: int, whole: bool, exact: bool) -> Tensor:
    """The `keep` best of the candidates: the `quota` best tokens of each cell of 2 x 2, ascending.

    Args:
        score: [m].
        quota: raised where there are fewer candidates than `keep`.
        whole: whether only whole cells have candidates, so that the last row or column of an odd grid has none.
        exact: whether other tokens follow where all cells together have fewer than `keep`. If not, fewer are returned
            there, and all tokens if a quota of four is needed.
    """
    needed = -(-4 * keep // (places.rows * places.cols))
    if not exact and whole and keep > quota * places.rows * places.cols / 4 and needed >= 4:
        return torch.arange(len(score), device=score.device)
    order = top_k(score, len(score))
    cell = (places.row // 2 * places.cols + places.col // 2)[order]
    grouped = cell.sort(stable=True)
    first = torch.searchsorted(grouped.values, grouped.values)
    rank = torch.empty_like(cell)
    rank[grouped.indices] = torch.arange(len(cell), device=cell.device) - first
    inside = torch.ones_like(order, dtype=torch.bool)
    if whole:
        inside = ((places.row < places.rows // 2 * 2) & (places.col < places.cols // 2 * 2))[order]
    while quota < 4 and int((inside & (rank < quota)).sum()) < keep:
        quota += 1
    candidate = inside & (rank < quota)
    ranked = torch.cat([order[candidate], order[~candidate]]) if exact else order[candidate]
    return ranked[:keep].sort().values


def gathering(states: Tensor, places: Places, anchors: Tensor, alone: Tensor, radius: float) -> Tensor:
    """[k, m] weights with which each anchor gathers the tokens around it; each row adds up to 1.

    relu(cosine of the states) * max(0, 1 - distance / radius), divided by the sum of the row. An anchor that is `alone`
    [k], or like nothing around it, gathers only itself.

    Args:
        states: [m, C].
        anchors: [k].
        radius: in cells.
    """
    unit = nn.functional.normalize(states, dim=1)
    grid = torch.stack([places.row, places.col], dim=1).float()
    distance = torch.cdist(grid[anchors], grid, compute_mode="donot_use_mm_for_euclid_dist")
    weights = (unit[anchors] @ unit.T).clamp(min=0) * (1 - distance / radius).clamp(min=0)
    own = anchors[:, None] == torch.arange(len(states), device=anchors.device)
    weights = torch.where(alone[:, None] & ~own, 0.0, weights)
    total = weights.sum(1, keepdim=True)
    return torch.where(total > 0, weights / (total + 1e-8), own.to(weights.dtype))
