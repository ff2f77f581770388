"""Images cut into tiles of a canvas, and features resized to another grid: LLaVA-NeXT and LLaVA-OneVision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from vlmprune.testing.images import FRAMES, Arguments, Kind, Place, Shares, Slots, blocks, frames, pixels
from vlmprune.testing.weights import IMAGE, PATCH, VIDEO

Reach = list[tuple[Place, float]]  # the patches that reach a slot and what part of each is in it, the largest first


@dataclass
class Canvas:
    """An anyres image, worked out by hand.

    Attributes:
        size: height and width of the image in pixels.
        tiles: rows and columns of tiles of the best canvas.
        rows, cols: patches of the canvas that the image covers; the rest is padding, cut from the features.
        shrunk: rows and columns after OneVision's resize, if the canvas is too large for it.
    """

    size: tuple[int, int]
    tiles: tuple[int, int]
    rows: range
    cols: range
    shrunk: tuple[int, int] | None = None


NEXT = [  # tiles of 4x4 patches
    Canvas((10, 30), (1, 2), range(1, 3), range(8)),
    Canvas((30, 9), (2, 1), range(8), range(1, 3)),
    Canvas((26, 40), (2, 2), range(1, 7), range(8)),
    Canvas((12, 60), (1, 3), range(1, 3), range(12)),
]
ONEVISION = [  # tiles of 5x5 patches
    Canvas((10, 30), (1, 2), range(1, 4), range(10)),
    Canvas((30, 9), (2, 1), range(10), range(1, 4)),
    Canvas((32, 40), (2, 2), range(1, 9), range(10), shrunk=(6, 7)),
    Canvas((12, 60), (1, 3), range(1, 4), range(15)),
]


def _bilinear(before: int, after: int) -> list[list[tuple[int, float]]]:
    """For each output cell of a resize along one axis (no antialiasing): the input cells and their weights."""
    cells = []
    for cell in range(after):
        centre = max((cell + 0.5) * before / after - 0.5, 0.0)
        low, share = int(centre + 1e-6), centre - int(centre + 1e-6)
        high = min(low + 1, before - 1)
        cells.append([(low, 1 - share), (high, share)] if share > 1e-6 and high > low else [(low, 1.0)])
    return cells


def _resized(rows: int, cols: int, size: tuple[int, int], place: Callable[[int, int], Place]) -> list[list[Reach]]:
    """Rows of slots of a grid resized to `size`."""
    grid = []
    for by_row in _bilinear(rows, size[0]):
        line = []
        for by_col in _bilinear(cols, size[1]):
            reach = [(place(row, col), u * v) for row, u in by_row for col, v in by_col]
            line.append(sorted(reach, key=lambda part: (-part[1], part[0])))
        grid.append(line)
    return grid


def _places(reaches: list[Reach]) -> Slots:
    return [[place for place, _ in reach] for reach in reaches]


def _shares(reaches: list[Reach]) -> Shares:
    return [[share for _, share in reach] for reach in reaches]


def anyres(table: list[Canvas], grid: int) -> Kind:
    """The whole image first (tile 0), then the canvas, with a newline slot after each row.

    Args:
        table: the canvas by seed, and from the beginning again.
        grid: rows and columns of a tile, in patches.
    """

    def image(seed: int) -> tuple[Arguments, list[int]]:
        canvas = table[seed % len(table)]
        rows, cols = canvas.shrunk or (len(canvas.rows), len(canvas.cols))
        tiles = 1 + canvas.tiles[0] * canvas.tiles[1]
        ids = [IMAGE] * (grid**2 + rows * (cols + 1))
        arguments = {
            "pixel_values": pixels(1, tiles, 3, grid * PATCH, grid * PATCH, seed=seed),
            "image_sizes": torch.tensor([canvas.size]),
        }
        return arguments, ids

    def reaches(seed: int) -> list[Reach]:
        canvas = table[seed % len(table)]

        def place(row: int, col: int) -> Place:
            row, col = canvas.rows[row], canvas.cols[col]
            return 1 + row // grid * canvas.tiles[1] + col // grid, row % grid, col % grid

        rows, cols = len(canvas.rows), len(canvas.cols)
        lines = _resized(rows, cols, canvas.shrunk or (rows, cols), place)
        base: list[Reach] = [[(spot, 1.0)] for [spot] in blocks(grid, grid)]
        return [*base, *[slot for line in lines for slot in [*line, []]]]

    return Kind(image, lambda seed: _places(reaches(seed)), resampled=lambda seed: _shares(reaches(seed)))


def _pooled(frame: int) -> list[Reach]:
    return [slot for line in _resized(5, 5, (3, 3), lambda row, col: (frame, row, col)) for slot in line]


# LLaVA-OneVision's videos: 5x5 patches of each frame pooled to 3x3, and one newline slot at the end of the video
_video: list[Reach] = [*[slot for frame in range(FRAMES) for slot in _pooled(frame)], []]
frames_pooled = replace(
    frames(20, [VIDEO] * len(_video), _places(_video)),
    resampled=lambda seed: _shares(_video),
    pooled=lambda seed: (3, 3),
)
