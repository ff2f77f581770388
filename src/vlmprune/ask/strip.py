"""A video's frames on one sheet, with what each kept and how much of the budget it got."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from vlmprune.ask.overlay import counts_line, draw, window_on
from vlmprune.ask.sheet import Panel, fit, sheet
from vlmprune.core.report import RunReport
from vlmprune.core.view import Grid
from vlmprune.data.video import Frames

_ACROSS = 4  # frames side by side
_LOW, _HIGH = 224, 448  # pixels of a frame's longer side, as there are many


def draw_frames(
    report: RunReport, frames: Frames, *, title: str, lines: Sequence[str] = (), processor: object = None
) -> Image.Image:
    """A sheet of what a run on one video kept at the end: a panel for each frame that has slots of its own.

    Raises:
        UserError: it is not known how the slots cover the frames.
    """
    kept, grid, cells = report.by_frame(), report.grids[0][0], report.cells[0][0].cpu()
    assert grid is not None  # or `by_frame` would have raised
    size = grid.rows * grid.cols
    had = torch.bincount(cells[cells >= 0] // size, minlength=grid.frames).tolist()
    each = len(frames.indices) / grid.frames  # frames that share their slots, as Qwen's do
    panels = []
    for frame, slots in enumerate(kept):
        place = int(frame * each)
        image = Image.fromarray(frames.pixels[place])
        picture = fit(image, _LOW, _HIGH)
        window = window_on(picture, image, getattr(processor, "video_processor", None) or processor)
        drawn = draw(picture, Grid(grid.rows, grid.cols), cells[slots.cpu()] % size, window=window)
        seconds = frames.indices[place] / frames.fps
        panels.append(Panel(drawn, f"{seconds:.1f} s: {len(slots)} of {had[frame]}"))
    return sheet(panels, _ACROSS, [title, *lines, counts_line(report, 0)])
