"""How LLaVA-NeXT's original code lays tiles on a canvas: what the packed goldens are in the order of."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from golden_runners.case import Case

TILE = 336


def canvas_order(case: Case, kept: list[Tensor], side: int) -> list[tuple[int, int]]:
    """Kept patches of the sub-tiles (1, 2, ...) in raster order of the canvas, as (tile, place in kept[tile]).

    Args:
        kept: patch indices of each tile, the base image being tile 0.
        side: patches along a tile's edge.
    """
    width, height = case["image_size_wh"]
    pinpoints = [(h, w) for w, h in case["grid_pinpoints_wh"]]
    columns = select_best_resolution((height, width), pinpoints)[1] // TILE
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
