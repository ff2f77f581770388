"""Downsampling: a smaller image through the same tower; a baseline of every comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from vlmprune.author import Grid, PixelMethod


@dataclass
class Downsample(PixelMethod):
    """The image resized so that it makes at most `keep` tokens.

    Paper: none; it is the plain alternative to pruning.

    Formula: for an image of R x C cells the ideal grid has the same aspect ratio and `keep` cells: r* = sqrt(keep R /
    C) by c* = keep / r*. Of the whole-numbered grids around it with at most `keep` cells, the one with the smallest
    max(r/r*, r*/r) max(c/c*, c*/c) is taken, so that stretching and lost cells count alike. Ties go to more cells, then
    to more columns. 14 x 14 with keep 65 gives 8 x 8. There are never more rows or columns than before. For a video
    `keep` is divided by the number of frames, all of which stay; a frame has at least one cell.
    Time O(1) besides the resizing. The encoder gets cheaper too.

    Defaults: none; positions are those of a smaller image.
    """

    name: ClassVar[str] = "downsample"
    summary: ClassVar[str] = "the image resized to the token budget before it is encoded"

    def resize(self, grid: Grid, keep: int) -> Grid:
        budget = max(1, keep // grid.frames)
        if budget >= grid.rows * grid.cols:
            return grid
        height = math.sqrt(budget * grid.rows / grid.cols)
        shapes = set()
        for rounded in (math.floor, math.ceil):
            rows = min(max(1, rounded(height)), grid.rows, budget)
            shapes.add((rows, min(grid.cols, budget // rows)))
            cols = min(max(1, rounded(budget / height)), grid.cols, budget)
            shapes.add((min(grid.rows, budget // cols), cols))

        def misfit(shape: tuple[int, int]) -> tuple[Fraction, int, int]:
            rows, cols = shape  # the squares of r/r* and c/c* are rational, so ties are exact
            tall = Fraction(rows * rows * grid.cols, budget * grid.rows)
            wide = Fraction(cols * cols * grid.rows, budget * grid.cols)
            return max(tall, 1 / tall) * max(wide, 1 / wide), -rows * cols, -cols

        return Grid(*min(shapes, key=misfit), grid.frames)
