"""How LLaVA-NeXT's original code lays tiles on a canvas: what the packed goldens are in the order of."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from golden_runners.case import Case
from vlmprune.core.view import Grid, ImageView, ModelInfo, TowerRows

NEXT = ModelInfo("llava_next", encoder_layers=24, decoder_layers=32, has_cls=True)
TILE = 336


def canvas_order(case: Case, kept: list[Tensor], side: int) -> list[tuple[int, int]]:
    """Kept patches of the sub-tiles (1, 2, ...) in raster order of the canvas, as (tile, place in kept[tile]).

    Args:
        kept: patch indices of each tile, the base image being tile 0.
        side: patches along a tile's edge.
    """
    columns = canvas_shape(case)[1]
    places = []
    for tile, indices in enumerate(kept[1:], start=1):
        top, left = divmod(tile - 1, columns)
        for place, patch in enumerate(indices.tolist()):
            row, column = divmod(patch, side)
            places.append((top * side + row, left * side + column, tile, place))
    return [(tile, place) for _, _, tile, place in sorted(places)]


def packed(case: Case, kept: list[Tensor], side: int) -> Tensor:
    """[T, 3]: tile, row and column of every token that the LLM receives: the base image, then the canvas."""
    order = [(0, place) for place in range(len(kept[0]))] + canvas_order(case, kept, side)
    return torch.tensor([[tile, *divmod(int(kept[tile][place]), side)] for tile, place in order])


def canvas_shape(case: Case) -> tuple[int, int]:
    """Rows and columns of tiles."""
    width, height = case["image_size_wh"]
    best = select_best_resolution((height, width), [(h, w) for w, h in case["grid_pinpoints_wh"]])
    return best[0] // TILE, best[1] // TILE


def next_image(signals: dict[str, Any], shape: tuple[int, int], n: int, keep: int) -> ImageView:
    """LLaVA-NeXT's slots, with no padding cut off: the base image, then the canvas with a newline slot a row.

    Args:
        signals: of the tiles' patches [tiles, n, ...], or TowerRows of such and the tiles' CLS tokens [tiles, ...].
        shape: rows and columns of tiles.
    """
    side, (down, across) = math.isqrt(n), shape
    numbers = 1 + torch.arange(down * across).view(down, 1, across, 1)
    row, col = torch.arange(side).view(1, -1, 1, 1), torch.arange(side)
    canvas = ((numbers * side + row) * side + col).reshape(down * side, across * side)
    slots = torch.arange(n + (across * side + 1) * down * side)
    shown = torch.cat([slots[:n], slots[n:].view(down * side, -1)[:, :-1].flatten()])
    cells = torch.cat([torch.arange(n), canvas.flatten()])
    by_token = {
        name: TowerRows(values.rows.flatten(0, 1)[cells], values.cls)
        if isinstance(values, TowerRows)
        else values.flatten(0, 1)[cells]
        for name, values in signals.items()
    }
    return ImageView(keep, shown, Grid(side, side, 1 + down * across), NEXT, by_token, cells=cells)
