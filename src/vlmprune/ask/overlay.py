"""Kept and dropped patches drawn over the picture, where the model saw them.

Kept patches keep their colours and get a thin contour, dropped ones are grey, and what a processor's centre crop cut
off is dark. Everything here is a pure function of its arguments: no model, no file, the same pixels on every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlmprune.ask.sheet import Panel, fit, sheet
from vlmprune.core.errors import UserError
from vlmprune.core.report import RunReport
from vlmprune.core.view import Grid

CONTOUR = (240, 100, 20)
_GREY_SHARE = 0.34  # how much of a dropped patch's brightness is left; the rest is light grey
_GREY = 226.0
_UNSEEN_SHARE = 0.28  # brightness left where the model saw nothing
_ACROSS = 4  # stages side by side; further ones go on in the next row


class Window(NamedTuple):
    """The part of a picture that the model saw, in pixels of that picture. The slot grid is stretched over it."""

    left: float
    top: float
    right: float
    bottom: float

    def scaled(self, across: float, down: float) -> Window:
        """The same part of the picture enlarged by these factors."""
        return Window(self.left * across, self.top * down, self.right * across, self.bottom * down)


def seen_window(processor: Any, size: tuple[int, int]) -> Window:
    """What is left of a picture of `size` (width, height) after the processor's resize and centre crop.

    Every resize of transformers stretches the whole picture, so only a centre crop cuts anything off.
    A processor that says nothing about a crop is taken to show the whole picture.
    """
    width, height = size
    settings = getattr(processor, "image_processor", processor)
    crop = _sizes(getattr(settings, "crop_size", None))
    if not getattr(settings, "do_center_crop", False) or "height" not in crop:
        return Window(0, 0, width, height)
    resized_width, resized_height = _resized(settings, width, height)
    # Integer division as in the processors: an odd margin leaves its larger half at the right and bottom.
    left = (resized_width - crop["width"]) // 2
    top = (resized_height - crop["height"]) // 2
    across, down = width / resized_width, height / resized_height
    return Window(left * across, top * down, (left + crop["width"]) * across, (top + crop["height"]) * down)


def window_on(picture: Image.Image, image: Image.Image, processor: Any) -> Window:
    """The part that the model saw of an image, in pixels of the `picture` that it was enlarged or reduced to."""
    window = seen_window(processor, image.size)
    return window.scaled(picture.width / image.width, picture.height / image.height)


def counts_line(report: RunReport, sample: int) -> str:
    """A sample's token counts in words."""
    before, after = report.tokens[sample]
    return f"{before} visual tokens, {after} after pruning, {report.entering[sample]:.1f} entering a layer on average"


def _sizes(size: Any) -> dict[str, int]:
    """A processor's size settings as a plain dict without the entries that are not set."""
    return {key: value for key, value in dict(size or {}).items() if value}


def _resized(settings: Any, width: int, height: int) -> tuple[int, int]:
    """Width and height after the processor's resize, before its crop."""
    if not getattr(settings, "do_resize", True):
        return width, height
    size = _sizes(getattr(settings, "size", None))
    if "height" in size and "width" in size:
        return size["width"], size["height"]
    if "shortest_edge" in size:
        short, long = size["shortest_edge"], int(size["shortest_edge"] * max(width, height) / min(width, height))
        return (short, long) if width <= height else (long, short)
    return width, height


def draw(
    image: Image.Image, grid: Grid, kept: Tensor, *, window: Window | None = None, cells: bool = False
) -> Image.Image:
    """The picture with its dropped patches in grey; the pixels of kept patches are unchanged.

    Args:
        image: the picture, drawn on at its own resolution (see `fit`).
        grid: rows and columns of the slots, one frame.
        kept: the kept slot numbers, row by row from the top left. Negative ones (tokens without a slot) are ignored.
        window: the part that the model saw, in pixels of `image`; None means all of it.
        cells: also draw a line between neighbouring kept patches.

    Raises:
        UserError: a grid of several frames, or a slot beyond the grid.
    """
    if grid.frames != 1:
        raise UserError(f"A grid of {grid.frames} frames cannot be drawn over one picture.")
    slots = kept.detach().cpu().numpy().astype(np.int64)
    if slots.size and slots.max() >= grid.size:
        raise UserError(f"Slot {slots.max()} lies beyond a grid of {grid.rows} x {grid.cols} slots.")
    pixels = np.asarray(image.convert("RGB"), np.float32)
    height, width = pixels.shape[:2]
    area = window or Window(0, 0, width, height)
    rows = _cells(height, area.top, area.bottom, grid.rows)
    cols = _cells(width, area.left, area.right, grid.cols)
    seen = (rows >= 0)[:, None] & (cols >= 0)[None, :]
    is_kept = np.zeros(grid.size + 1, bool)  # the last entry answers for pixels outside the window
    is_kept[slots[slots >= 0]] = True
    bright = is_kept[np.where(seen, rows[:, None] * grid.cols + cols[None, :], grid.size)]

    grey = pixels @ np.array((0.299, 0.587, 0.114), np.float32)
    faded = np.repeat((_GREY_SHARE * grey + (1 - _GREY_SHARE) * _GREY)[:, :, None], 3, axis=2)
    dark = np.repeat((_UNSEEN_SHARE * grey)[:, :, None], 3, axis=2)
    drawn = np.where(bright[:, :, None], pixels, np.where(seen[:, :, None], faded, dark))
    thickness = max(1, round(max(width, height) / 400))
    if not bright[seen].all():
        drawn[_grown(bright, thickness) & ~bright] = CONTOUR
    if cells:
        edges = _edges(rows, thickness)[:, None] | _edges(cols, thickness)[None, :]
        drawn[edges & bright] = CONTOUR
    return Image.fromarray(np.rint(drawn).astype(np.uint8))


def coarsen(kept: Tensor, lattice: Tensor, grid: Grid) -> tuple[Grid, Tensor] | None:
    """Kept slots as cells of the smaller grid that an image was resized to.

    Args:
        kept: slots of `grid`.
        lattice: the slots under the centres of all cells of the smaller grid.
        grid: the slot grid of the full image.

    Returns:
        The smaller grid and its kept cells, or None if `lattice` does not consist of whole rows and columns.
    """
    rows, cols = torch.unique(lattice // grid.cols), torch.unique(lattice % grid.cols)
    if len(rows) * len(cols) != len(lattice):
        return None
    cells = torch.searchsorted(rows, kept // grid.cols) * len(cols) + torch.searchsorted(cols, kept % grid.cols)
    return Grid(len(rows), len(cols)), cells


def _cells(length: int, start: float, stop: float, count: int) -> np.ndarray:
    """The cell, 0 to count-1, that each of `length` pixels lies in, by its centre; -1 outside [start, stop)."""
    cells = np.floor((np.arange(length) + 0.5 - start) * count / (stop - start)).astype(np.int64)
    return np.where((cells >= 0) & (cells < count), cells, -1)


def _edges(cells: np.ndarray, thickness: int) -> np.ndarray:
    """The last pixels of each cell but the last one, along one axis."""
    moved = np.concatenate([cells[thickness:], np.full(thickness, cells[-1])])
    return (cells >= 0) & (moved != cells)


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """The mask [H, W] with a border of `by` pixels around it."""
    padded = np.pad(mask, by)
    height, width = mask.shape
    grown = np.zeros_like(mask)
    for down in range(2 * by + 1):
        for across in range(2 * by + 1):
            grown |= padded[down : down + height, across : across + width]
    return grown


def draw_run(
    report: RunReport,
    images: Sequence[Image.Image],
    *,
    title: str = "",
    lines: Sequence[str] = (),
    processor: Any = None,
    resized: bool = False,
    sample: int = 0,
) -> Image.Image:
    """A sheet of what a run kept: a panel for each image, stage, and way in which the slots cover the image.

    Up to four stages are side by side, so that each image has a row of its own; further stages start a new row.

    Args:
        report: `session.last`.
        images: the pictures of the sample, in prompt order.
        title: the method and budget in words.
        lines: further lines; the token counts are added to them.
        processor: the model's processor, to map its centre crop back onto the picture.
        resized: whether the method resized the image; then its larger patches are drawn.
        sample: which sample of the batch.

    Raises:
        UserError: it is not known how the slots cover the picture.
    """
    panels, stages = [], report.stages or [(0, report.kept)]
    for number, (image, wholes) in enumerate(zip(images, report.wholes[sample], strict=False)):
        if not wholes:
            raise UserError("The visual tokens of this model form no grid over the picture, so they cannot be drawn.")
        picture = fit(image)
        window = window_on(picture, image, processor)
        for whole in wholes:
            for layer, kept in stages:
                slots = kept[sample][number]
                coarse = coarsen(slots, stages[0][1][sample][number], whole.grid) if resized else None
                cells = whole.cells.cpu()[slots]
                cells = cells[cells >= 0]
                place = f"before layer {layer}" if layer else "before the LLM"
                place = place if len(wholes) == 1 else f"{whole.name}, {place}"
                drawn = draw(picture, *(coarse or (whole.grid, cells)), window=window, cells=coarse is not None)
                panels.append(Panel(drawn, f"{place}: {len(cells)} of {int((whole.cells >= 0).sum())}"))
    counts = counts_line(report, sample)
    if report.merged and report.merged[sample]:
        counts += "; a token merged from several patches is drawn where it stands"
        after = report.tokens[sample][1]
        placeless = after - sum(len(slots) for slots in report.kept[sample])
        counts += f", {placeless} of the {after} at no patch" if placeless > 0 else ""
    return sheet(panels, min(len(stages), _ACROSS), [*([title] if title else []), *lines, counts])
