"""Where the visual tokens of a prompt are: blocks of slots, tile by tile, drawn in characters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmprune.core.report import RunReport
from vlmprune.core.view import Grid, Whole
from vlmprune.models.base import Adapter

NOTHING, DROPPED, KEPT = -1, 0, 1  # marks of a cell; NOTHING: no slot shows it
CHARACTERS = {NOTHING: " ", DROPPED: ".", KEPT: "#"}
WIDTH = 100  # characters per line
PLAIN_WIDTH = 32  # slots per line where there is no grid


@dataclass(frozen=True)
class Block:
    """A tile, a frame, or a whole image: marks [rows, cols] of its cells."""

    title: str
    marks: Tensor


@dataclass(frozen=True)
class Shown:
    """One image of the prompt.

    Attributes:
        grid: of its slots, or None where none is known; its single block then holds the slots in order.
        blocks: one per tile or frame.
        others: marks [m] of the slots that show no patch.
        others_name: what these are.
        doubled: slots that share a cell with an earlier one.
    """

    grid: Grid | None
    blocks: list[Block]
    others: Tensor
    others_name: str
    doubled: int = 0

    @property
    def count(self) -> int:
        return sum(int((block.marks != NOTHING).sum()) for block in self.blocks) + len(self.others) + self.doubled


@dataclass(frozen=True)
class Layout:
    """The visual tokens of one prompt.

    Attributes:
        length: tokens of the prompt.
        columns: prompt columns of the visual slots.
        images: in prompt order.
        kept: visual tokens left.
    """

    length: int
    columns: Tensor
    images: list[Shown]
    kept: int

    @classmethod
    def of(cls, adapter: Adapter, inputs: Mapping[str, Any], report: RunReport, part: str = "tile") -> Layout:
        """The layout of the one sample in `inputs`, as a run reported it; its grids' frames are called `part`."""
        ids = inputs["input_ids"][0].cpu()
        columns = torch.isin(ids, torch.tensor(list(adapter.placeholder_ids.values()))).nonzero().squeeze(1)
        wholes = report.wholes[0] if report.wholes else [()] * len(report.grids[0])
        images = [
            _shown(adapter, grid, cells, kept.cpu(), whole, part)
            for grid, cells, kept, whole in zip(report.grids[0], report.cells[0], report.kept[0], wholes, strict=True)
        ]
        return cls(len(ids), columns, images, sum(len(kept) for kept in report.kept[0]))


def _shown(
    adapter: Adapter, grid: Grid | None, cells: Tensor, kept: Tensor, wholes: Sequence[Whole], part: str
) -> Shown:
    marks = torch.full((len(cells),), DROPPED)
    marks[kept] = KEPT
    if grid is None:
        return Shown(None, [Block("", in_lines(marks))], marks[:0], "")
    shows = cells >= 0
    frames = torch.full((grid.size,), NOTHING)
    frames.scatter_reduce_(0, cells[shows], marks[shows], "amax")
    titles = _titles(grid, cells, wholes, part)
    blocks = [Block(title, frame) for title, frame in zip(titles, frames.view(-1, grid.rows, grid.cols), strict=True)]
    doubled = int(shows.sum()) - int((frames != NOTHING).sum())
    return Shown(grid, blocks, marks[~shows], _name_of_others(adapter, grid, int((~shows).sum())), doubled)


def in_lines(marks: Tensor) -> Tensor:
    """Marks [m] as lines of a block."""
    lines = -(-len(marks) // PLAIN_WIDTH)
    width = min(len(marks), PLAIN_WIDTH)
    whole = torch.full((lines * width,), NOTHING)
    whole[: len(marks)] = marks
    return whole.view(lines, width)


def _titles(grid: Grid, cells: Tensor, wholes: Sequence[Whole], part: str) -> list[str]:
    """Tiles by number; one that shows the whole picture by its name too."""
    if grid.frames == 1:
        return [""]
    titles = [f"{part} {number}" for number in range(1, grid.frames + 1)]
    for whole in wholes:
        frames = (cells[whole.cells.cpu() >= 0] // (grid.rows * grid.cols)).unique()
        if len(frames) == 1:
            titles[int(frames)] += f" ({whole.name})"
    return titles


def _name_of_others(adapter: Adapter, grid: Grid, count: int) -> str:
    if hasattr(adapter.inner, "image_newline"):
        return "image_newline"
    return "CLS" if adapter.has_cls and count == grid.frames else "other"


def describe_layout(layout: Layout, method: str) -> list[str]:
    """The layout in lines of characters."""
    columns, total = layout.columns, sum(image.count for image in layout.images)
    lines = [
        f"a sample picture: {total} visual tokens of {layout.length} in the prompt, columns {int(columns[0])} to "
        f"{int(columns[-1])}; with {method}, {layout.kept} are kept (#) and {total - layout.kept} dropped (.):"
    ]
    if len(layout.images) > 1:
        lines.append(f"vlmprune counts the picture as {len(layout.images)} images, each with a budget of its own:")
    for number, image in enumerate(layout.images, start=1):
        name = f"image {number}: " if len(layout.images) > 1 else ""
        lines += [name + _heading(image), *_draw(image)]
        if len(image.others):
            kind = "slots" if image.others_name == "other" else f"{image.others_name} slots"
            lines.append(f"{len(image.others)} {kind} that show no patch:")
            lines += _rows(in_lines(image.others))
        if image.doubled:
            lines.append(f"slots that show a cell already drawn (the tiles were shrunk together): {image.doubled}")
    return lines


def _heading(image: Shown) -> str:
    grid = image.grid
    if grid is None:
        return f"{image.count} slots, in no grid that vlmprune knows; in their order:"
    if grid.frames == 1:
        return f"slot grid {grid.rows} x {grid.cols} (rows x columns):"
    blank = any(bool((block.marks == NOTHING).any()) for block in image.blocks)
    return (
        f"{grid.frames} blocks with a slot grid of {grid.rows} x {grid.cols} (rows x columns) each, in prompt order"
        f"{'; a blank is a place without a slot' if blank else ''}:"
    )


def _draw(image: Shown) -> Iterator[str]:
    """Blocks side by side, as many as fit on a line."""
    drawn = []
    for block in image.blocks:
        rows = _rows(block.marks)
        width = max(len(block.title) + 2, *(len(row) for row in rows))
        drawn.append([row.ljust(width) for row in ([f"  {block.title}"] if block.title else []) + rows])
    width = max(len(block[0]) for block in drawn)
    across = max(1, (WIDTH + 2) // (width + 2))
    for start in range(0, len(drawn), across):
        for parts in zip(*drawn[start : start + across], strict=True):
            yield "  ".join(part.ljust(width) for part in parts).rstrip()


def _rows(marks: Tensor) -> list[str]:
    between = " " if 2 * marks.shape[1] <= WIDTH else ""
    return ["  " + between.join(CHARACTERS[mark] for mark in row) for row in marks.tolist()]
