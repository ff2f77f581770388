"""Images that the processor cuts into tiles: which tile shows the whole image, and which part of it the others show."""

from __future__ import annotations

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


def shown_by(view: ImageView) -> Tensor | None:
    """For each cell of the tile with the whole image, the canvas tile that shows the same place: [rows * cols].

    None for families that write tiles one after another, so that the order of slots does not tell how tiles lie.
    """
    if view.info.family not in WHOLE_FIRST or view.grid is None:
        return None
    rows, cols, frames = view.grid
    part = view.cells[view.cells >= rows * cols]
    if not len(part):
        return None
    tile, row, col = part // (rows * cols) - 1, part // cols % rows, part % cols

    def place(across: int) -> tuple[Tensor, Tensor]:
        return tile // across * rows + row, tile % across * cols + col

    def steps_back(across: int) -> int:
        down, right = place(across)
        return int(((down * across * cols + right).diff() < 0).sum())

    across = min((n for n in range(1, frames) if (frames - 1) % n == 0), key=steps_back)
    # The canvas without its padding shows the whole image, and so does the tile with the whole image.
    down, right = (_stretched(axis, size) for axis, size in zip(place(across), (rows, cols), strict=True))
    return (1 + down[:, None] // rows * across + right // cols).flatten()


def _stretched(places: Tensor, size: int) -> Tensor:
    """Places on the canvas of `size` cells that together span the same range as `places`."""
    first, last = int(places.min()), int(places.max())
    centres = torch.arange(size, device=places.device) + 0.5
    return first + (centres * (last + 1 - first) / size).long()
