"""Images that the processor cuts into tiles: which tile shows the whole image, and which part of it the others show."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlmprune.author import ImageView, ModelInfo

WHOLE_FIRST = ("llava_next", "llava_onevision")  # then a canvas of tiles, whose rows run across all tiles of a row
WHOLE_LAST = ("internvl", "smolvlm", "idefics3")


def cuts_into_tiles(info: ModelInfo) -> bool:
    """Whether the family's processor cuts images into tiles, so that there may be a `whole_tile`."""
    return info.family in (*WHOLE_FIRST, *WHOLE_LAST)


def whole_tile(view: ImageView) -> int | None:
    """The number of the tile that shows the whole image; None for an image in one piece and for a video."""
    if view.grid is None or view.grid.frames == 1:
        return None
    if view.info.family in WHOLE_LAST:
        return view.grid.frames - 1
    # A canvas has a newline slot at the end of each row, so its slots are not equal to its cells; a video's are.
    canvas = view.info.family in WHOLE_FIRST and not torch.equal(view.slots, view.cells)
    return 0 if canvas else None


class Canvas(NamedTuple):
    """Where on the canvas the tokens of its tiles lie, in the order of the view, which leaves out the whole image's.

    Attributes:
        tokens: [m] indices into the view.
        row, col: [m] of the canvas, padding included.
        across: how many tiles lie side by side.
    """

    tokens: Tensor
    row: Tensor
    col: Tensor
    across: int


def canvas_of(view: ImageView) -> Canvas | None:
    """The canvas of an image that is cut into tiles.

    None if no token of it is there, and for families that write tiles one after another, so that the order of slots
    does not tell how tiles lie.
    """
    if view.info.family not in WHOLE_FIRST or view.grid is None:
        return None
    rows, cols, frames = view.grid
    tokens = (view.cells >= rows * cols).nonzero().squeeze(1)
    if not len(tokens):
        return None
    part = view.cells[tokens]
    tile, row, col = part // (rows * cols) - 1, part // cols % rows, part % cols

    def place(across: int) -> tuple[Tensor, Tensor]:
        return tile // across * rows + row, tile % across * cols + col

    def steps_back(across: int) -> int:
        down, right = place(across)
        return int(((down * across * cols + right).diff() < 0).sum())

    across = min((n for n in range(1, frames) if (frames - 1) % n == 0), key=steps_back)
    return Canvas(tokens, *place(across), across)


def shown_by(view: ImageView) -> Tensor | None:
    """For each cell of the tile with the whole image, the canvas tile that shows the same place: [rows * cols].

    None where there is no `canvas_of` the view.
    """
    canvas = canvas_of(view)
    if canvas is None or view.grid is None:
        return None
    rows, cols, _ = view.grid
    # The canvas without its padding shows the whole image, and so does the tile with the whole image.
    down, right = (_stretched(axis, size) for axis, size in zip((canvas.row, canvas.col), (rows, cols), strict=True))
    return (1 + down[:, None] // rows * canvas.across + right // cols).flatten()


def _stretched(places: Tensor, size: int) -> Tensor:
    """Places on the canvas of `size` cells that together span the same range as `places`."""
    first, last = int(places.min()), int(places.max())
    centres = torch.arange(size, device=places.device) + 0.5
    return first + (centres * (last + 1 - first) / size).long()
