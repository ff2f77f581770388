"""A video's frames on one sheet, with what each kept and how much of the budget it got."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from vlmprune.ask.overlay import draw, seen_window
from vlmprune.ask.sheet import Panel, fit, sheet
from vlmprune.core.errors import UserError
from vlmprune.core.report import RunReport
from vlmprune.core.view import Grid
from vlmprune.data.video import Frames

_ACROSS = 4  # frames side by side
_LOW, _HIGH = 224, 448  # pixels of a frame's longer side, as there are many


def kept_by_frame(report: RunReport, sample: int = 0, number: int = 0) -> list[tuple[int, int]]:
    """Of each frame (or pair of frames that shares its slots), the slots that are kept and those there were.

    Args:
        report: `session.last`.
        sample, number: which sample of the batch, and which of its images or videos.

    Raises:
        UserError: its slots form no grid.
    """
    grid, cells = _grid(report, sample, number), report.cells[sample][number].cpu()
    had = torch.bincount(cells[cells >= 0] // (grid.rows * grid.cols), minlength=grid.frames)
    return list(zip(map(len, report.by_frame(sample, number)), had.tolist(), strict=True))


def draw_frames(
    report: RunReport, frames: Frames, *, title: str, lines: Sequence[str] = (), processor: object = None
) -> Image.Image:
    """A sheet of what a run on one video kept at the end: a panel for each frame that has slots of its own.

    Raises:
        UserError: it is not known how the slots cover the frames.
    """
    grid, cells, kept = _grid(report, 0, 0), report.cells[0][0].cpu(), report.kept[0][0].cpu()
    shown, size = cells[kept], grid.rows * grid.cols
    each = len(frames.indices) / grid.frames  # frames that share their slots, as Qwen's do
    panels = []
    for frame, (left, had) in enumerate(kept_by_frame(report)):
        place = int(frame * each)
        image = Image.fromarray(frames.pixels[place])
        picture = fit(image, _LOW, _HIGH)
        window = seen_window(getattr(processor, "video_processor", None) or processor, image.size)
        window = window.scaled(picture.width / image.width, picture.height / image.height)
        here = shown[(shown >= 0) & (shown // size == frame)] % size
        drawn = draw(picture, Grid(grid.rows, grid.cols), here, window=window)
        seconds = frames.indices[place] / frames.fps
        panels.append(Panel(drawn, f"{seconds:.1f} s: {left} of {had}"))
    before, after = report.tokens[0]
    counts = f"{before} visual tokens, {after} after pruning, {report.entering[0]:.1f} entering a layer on average"
    return sheet(panels, _ACROSS, [title, *lines, counts])


def _grid(report: RunReport, sample: int, number: int) -> Grid:
    grid = report.grids[sample][number]
    if grid is None:
        raise UserError("The visual tokens of this model form no grid over the frames, so they cannot be drawn.")
    return grid
