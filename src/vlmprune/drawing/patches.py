"""Kept, merged and dropped patches drawn over the picture, where the model saw them.

Kept patches keep their colours and get an outline, dropped ones are grey, merged ones have the tint of the token that
they went into, and what a processor's centre crop cut off is dark. A pure function of its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from vlmprune.core.fates import PLACELESS
from vlmprune.drawing.shown import Shown
from vlmprune.drawing.window import Window

CONTOUR = (214, 78, 0)
PARTS = ((196, 16, 46), (236, 158, 0), (0, 98, 190), (122, 42, 160), (0, 126, 98))  # outlines of named kinds, in order
GATHERED = (0, 122, 122)
ELSEWHERE = (150, 128, 168)
TINTS = ((58, 124, 214), (36, 160, 86), (226, 188, 40), (176, 88, 204), (28, 172, 182), (222, 88, 146), (134, 172, 52),
         (112, 104, 222), (196, 140, 88), (96, 146, 146))  # fmt: skip
GREY_SHARE = 0.34  # how much of a dropped patch's brightness is left; the rest is grey
GREY = 196.0
TINT_SHARE = 0.5
_UNSEEN_SHARE = 0.28  # brightness left where the model saw nothing


def tints_of(several: Sequence[Shown]) -> dict[int, int]:
    """The number of a tint for each merged token, in all pictures of one image or video; neighbours' differ."""
    merged = set().union(*(one.merged for one in several)) if several else set()
    beside: dict[int, set[int]] = {number: set() for number in merged}
    for one in several:
        if one.token is None:
            continue
        grid = one.token.view(one.grid.rows, one.grid.cols)
        for a, b in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):
            for left, right in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True):
                if left != right and left in beside and right in beside:
                    beside[left].add(right)
                    beside[right].add(left)
    found: dict[int, int] = {}
    for place, number in enumerate(sorted(merged)):
        taken = {found[other] for other in beside[number] if other in found}
        turns = [(place + k) % len(TINTS) for k in range(len(TINTS))]
        found[number] = next((tint for tint in turns if tint not in taken), turns[0])
    return found


def draw(
    image: Image.Image, shown: Shown, *, window: Window | None = None, tints: Mapping[int, int] | None = None
) -> Image.Image:
    """The picture with what became of its patches; the pixels of kept patches are unchanged but for outlines.

    Args:
        image: the picture, drawn on at its own resolution (see `sheet.fit`).
        window: the part that the model saw, in pixels of `image`; None means all of it.
        tints: see `tints_of`; by default of this picture alone.
    """
    return _Painting(image, shown, window, tints_of([shown]) if tints is None else tints).painted()


class _Painting:
    def __init__(self, image: Image.Image, shown: Shown, window: Window | None, tints: Mapping[int, int]) -> None:
        self.shown, self.tints, grid = shown, tints, shown.grid
        width, height = image.size
        area = window or Window(0, 0, width, height)
        image = image.convert("RGB") if not shown.pixels else _seen(image.convert("RGB"), shown, area)
        self.pixels = np.asarray(image, np.float32)
        self.rows = _cells(height, area.top, area.bottom, grid.rows)
        self.cols = _cells(width, area.left, area.right, grid.cols)
        self.seen = (self.rows >= 0)[:, None] & (self.cols >= 0)[None, :]
        # the last cell answers for pixels outside the window
        self.cell = np.where(self.seen, self.rows[:, None] * grid.cols + self.cols[None, :], grid.size)
        self.line = max(1, round(max(width, height) / 220))

    def of_cells(self, cells: torch.Tensor) -> np.ndarray:
        """[H, W] which pixels lie in these cells."""
        marked = np.zeros(self.shown.grid.size + 1, bool)
        marked[cells[cells >= 0].cpu().numpy()] = True
        return marked[self.cell]

    def painted(self) -> Image.Image:
        shown = self.shown
        stands, bright = self.of_cells(shown.kept), self.of_cells(self._whole())
        grey = self.pixels @ np.array((0.299, 0.587, 0.114), np.float32)
        faded = np.repeat((GREY_SHARE * grey + (1 - GREY_SHARE) * GREY)[:, :, None], 3, axis=2)
        dark = np.repeat((_UNSEEN_SHARE * grey)[:, :, None], 3, axis=2)
        faded = self._tinted(faded)
        drawn = np.where(bright[:, :, None], self.pixels, np.where(self.seen[:, :, None], faded, dark))
        if len(shown.gathered):
            self._hatch(drawn, self.of_cells(shown.gathered) & ~bright)
        if not bright[self.seen].all() and not shown.parts:
            drawn[_grown(stands, self.line) & ~stands] = CONTOUR
        for (_, cells), colour in zip(shown.parts.items(), _cycle(PARTS, len(shown.parts)), strict=True):
            drawn[self.of_cells(cells) & self._rims(max(2, self.line))] = colour
        if shown.resized:
            drawn[self._rims(self.line, last=True) & bright] = CONTOUR
        return Image.fromarray(np.rint(drawn).astype(np.uint8))

    def _whole(self) -> torch.Tensor:
        """The cells of which the token that stands there holds the patch."""
        kept, token, own = self.shown.kept, self.shown.token, self.shown.own
        kept = kept[kept >= 0]
        return kept if token is None or own is None else kept[token[kept] == own[kept]]

    def _tinted(self, faded: np.ndarray) -> np.ndarray:
        """Merged patches in the tint of their token, a line between two tokens."""
        if self.shown.token is None or self.shown.own is None:
            return faded
        share = np.zeros(self.shown.grid.size + 1, np.float32)
        colours = np.zeros((self.shown.grid.size + 1, 3), np.float32)
        token = self.shown.token.clone()
        lent = self.shown.kept[self.shown.kept >= 0]  # where a token stands that holds other patches
        token[lent] = torch.where(token[lent] < 0, self.shown.own[lent], token[lent])
        for cell, number in enumerate(token.tolist()):
            if number == PLACELESS or number in self.tints:
                share[cell] = TINT_SHARE
                colours[cell] = ELSEWHERE if number == PLACELESS else TINTS[self.tints[number]]
        part = share[self.cell][:, :, None]
        tinted = (1 - part) * faded + part * colours[self.cell]
        number = np.append(token.numpy(), -9)[self.cell]
        edge = np.zeros(number.shape, bool)
        edge[:, 1:] |= number[:, 1:] != number[:, :-1]
        edge[1:] |= number[1:] != number[:-1]
        tinted[edge & (part[:, :, 0] > 0)] = 250
        return tinted

    def _hatch(self, drawn: np.ndarray, where: np.ndarray) -> None:
        down, across = np.indices(where.shape)
        drawn[where & ((down + across) % (5 * self.line + 2) < self.line)] = GATHERED

    def _rims(self, thickness: int, last: bool = False) -> np.ndarray:
        """[H, W] the outermost pixels of each cell; with `last` only the last ones of each cell but the last one."""
        down, across = _edges(self.rows, thickness), _edges(self.cols, thickness)
        if not last:
            down, across = (_ends(cells, thickness) for cells in (self.rows, self.cols))
        return down[:, None] | across[None, :]


def _seen(image: Image.Image, shown: Shown, area: Window) -> Image.Image:
    """The picture with the part that the model saw at the model's own resolution."""
    box = (round(area.left), round(area.top), round(area.right), round(area.bottom))
    small = (shown.grid.cols * shown.pixels, shown.grid.rows * shown.pixels)
    cropped = image.crop(box)
    coarse = cropped.resize(small, Image.Resampling.BICUBIC).resize(cropped.size, Image.Resampling.BILINEAR)
    whole = image.copy()
    whole.paste(coarse, box[:2])
    return whole


def _cycle(colours: Sequence[tuple[int, int, int]], count: int) -> list[tuple[int, int, int]]:
    return [colours[number % len(colours)] for number in range(count)]


def _cells(length: int, start: float, stop: float, count: int) -> np.ndarray:
    """The cell, 0 to count-1, that each of `length` pixels lies in, by its centre; -1 outside [start, stop)."""
    cells = np.floor((np.arange(length) + 0.5 - start) * count / (stop - start)).astype(np.int64)
    return np.where((cells >= 0) & (cells < count), cells, -1)


def _edges(cells: np.ndarray, thickness: int) -> np.ndarray:
    """The last pixels of each cell but the last one, along one axis."""
    moved = np.concatenate([cells[thickness:], np.full(thickness, cells[-1])])
    return (cells >= 0) & (moved != cells)


def _ends(cells: np.ndarray, thickness: int) -> np.ndarray:
    """The first and the last pixels of each cell, along one axis."""
    beyond = np.full(thickness, -2)
    after, before = np.concatenate([cells[thickness:], beyond]), np.concatenate([beyond, cells[:-thickness]])
    return (cells >= 0) & ((after != cells) | (before != cells))


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """The mask [H, W] with a border of `by` pixels around it."""
    padded = np.pad(mask, by)
    height, width = mask.shape
    grown = np.zeros_like(mask)
    for down in range(2 * by + 1):
        for across in range(2 * by + 1):
            grown |= padded[down : down + height, across : across + width]
    return grown
