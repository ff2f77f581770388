"""Where an adapter says that visual slots lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmprune.core.view import Grid, Whole


@dataclass
class Slots:
    """Where the slots of one piece lie. A piece is what the tower returns as one: an image, a video or a tile.

    Attributes:
        grid: its slot grid, or None if the slots form no grid.
        cells: [count] the cell of `grid` that each slot shows; -1 for a slot that shows none (image_newline, CLS).
        wholes: how the slots cover the picture. By default all slots with a cell cover it, if the grid has one frame.
    """

    grid: Grid | None
    cells: Tensor
    wholes: tuple[Whole, ...] | None = None

    def __post_init__(self) -> None:
        if self.wholes is None:
            single = self.grid is not None and self.grid.frames == 1
            self.wholes = (Whole("image", self.grid, self.cells),) if single else ()  # type: ignore[arg-type]

    @property
    def plain(self) -> bool:
        """Whether slot i is cell i, for every cell of the grid."""
        if self.grid is None or self.grid.size != len(self.cells):
            return False
        return bool((self.cells == torch.arange(len(self.cells), device=self.cells.device)).all())


def raster(grid: Grid) -> Slots:
    """A slot for each cell, in order."""
    return Slots(grid, torch.arange(grid.size))
