"""A video's frames on one sheet, with what each kept and how much of the budget it got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.report import RunReport
from vlmprune.core.view import Grid, Whole
from vlmprune.data.video import Frames
from vlmprune.drawing.legend import legend
from vlmprune.drawing.patches import draw, tints_of
from vlmprune.drawing.run import counts_line
from vlmprune.drawing.sheet import Panel, fit, sheet
from vlmprune.drawing.shown import Shown, shown_of
from vlmprune.drawing.window import window_on

ACROSS = 4  # frames side by side
_LOW, _HIGH = 224, 448  # pixels of a frame's longer side, as there are many


def draw_frames(
    report: RunReport,
    frames: Frames,
    *,
    title: str,
    lines: Sequence[str] = (),
    processor: object = None,
    stage: int = -1,
) -> Image.Image:
    """A sheet of what a run on one video kept after a stage: a panel for each frame that has slots of its own.

    Raises:
        UserError: it is not known how the slots cover the frames.
    """
    shown = frames_shown(report, stage)
    had = _counts(report, len(shown))
    tints, each = tints_of(shown), len(frames.indices) / len(shown)  # frames that share their slots, as Qwen's do
    panels = []
    for frame, one in enumerate(shown):
        place = int(frame * each)
        image = Image.fromarray(frames.pixels[place])
        picture = fit(image, _LOW, _HIGH)
        window = window_on(picture, image, getattr(processor, "video_processor", None) or processor)
        seconds = frames.indices[place] / frames.fps
        label = f"{seconds:.1f} s: {len(one.kept)} of {had[frame]}"
        panels.append(Panel(draw(picture, one, window=window, tints=tints), label))
    return sheet(panels, ACROSS, [title, *lines, counts_line(report, 0)], legend(shown))


def frames_shown(report: RunReport, stage: int = -1) -> list[Shown]:
    """What became of the cells of each frame of a run's one video after a stage."""
    report.by_frame()  # raises where frames cannot be told apart
    grid = report.grids[0][0]
    assert grid is not None
    small = report.resized[0][0] if report.resized else None
    cells, size = report.cells[0][0].cpu(), grid.rows * grid.cols
    if small is not None:
        return _resized(report, grid, small, stage)
    found = []
    for frame in range(grid.frames):
        own = torch.where((cells >= 0) & (cells // size == frame), cells % size, -1)
        found.append(shown_of(report, Whole("frame", Grid(grid.rows, grid.cols), own), stage))
    return found


def _resized(report: RunReport, grid: Grid, small: Grid, stage: int) -> list[Shown]:
    """Of a video whose frames were resized: the cells of the smaller grid."""
    kept = (report.stages[stage][1] if report.stages else report.kept)[0][0].cpu()
    lattice, size, each = report.stages[0][1][0][0].cpu(), grid.rows * grid.cols, small.rows * small.cols
    if len(lattice) != small.size:
        raise UserError("It is not known how the slots of the resized video cover its frames.")
    numbers: Tensor = torch.searchsorted(lattice, kept)
    plain = Shown(Grid(small.rows, small.cols), numbers[:0], pixels=report.slot_pixels or 0, resized=True)
    frames = kept // size
    return [replace(plain, kept=numbers[frames == frame] % each) for frame in range(grid.frames)]


def _counts(report: RunReport, frames: int) -> list[int]:
    """The slots of each frame."""
    grid, cells = report.grids[0][0], report.cells[0][0].cpu()
    assert grid is not None
    return torch.bincount(cells[cells >= 0] // (grid.rows * grid.cols), minlength=frames).tolist()
