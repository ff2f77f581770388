"""What became of the cells of a picture's grid, ready to be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.fates import DROPPED, PLACELESS, UNTOLD
from vlmprune.core.report import RunReport
from vlmprune.core.view import Grid, Whole

NONE = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Shown:
    """What became of the cells of one picture after a stage.

    Attributes:
        grid: laid over the picture, one frame.
        kept: [k] cells at which a token stands. Negative ones (tokens without a cell) are ignored.
        token: [cells] a number for the token that each cell's patch is part of, the same for all cells that were
            merged; or `core.fates.DROPPED`, `PLACELESS`, `UNTOLD`. None where nothing was merged.
        own: [cells] a number for the token that stands at each cell, as in `token`; given with it.
        parts: the kept cells by the name of their kind ("anchors").
        gathered: cells that other tokens were made to attend to before they were dropped.
        pixels: where the picture was resized, pixels across one cell of what the model saw; 0 where that is not known.
        resized: whether it was.
    """

    grid: Grid
    kept: Tensor
    token: Tensor | None = None
    own: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    gathered: Tensor = NONE
    pixels: int = 0
    resized: bool = False

    def __post_init__(self) -> None:
        if self.grid.frames != 1:
            raise UserError(f"A grid of {self.grid.frames} frames cannot be drawn over one picture.")
        if len(self.kept) and int(self.kept.max()) >= self.grid.size:
            raise UserError(
                f"Slot {int(self.kept.max())} lies beyond a grid of {self.grid.rows} x {self.grid.cols} slots."
            )

    @property
    def merged(self) -> set[int]:
        """The numbers of tokens that hold another patch than that of the cell at which they stand."""
        if self.token is None or self.own is None:
            return set()
        elsewhere = (self.token >= 0) & (self.token != self.own)
        return set(self.token[elsewhere].tolist())


def shown_of(report: RunReport, whole: Whole, stage: int = -1, sample: int = 0, number: int = 0) -> Shown:
    """What became of the cells of one way in which an image's slots cover it, after a stage of a run."""
    layer, kept = report.stages[stage] if report.stages else (0, report.kept)
    slots, place = kept[sample][number], whole.cells.cpu()
    small = report.resized[sample][number] if report.resized else None
    if small is not None and (coarse := coarsen(slots, report.stages[0][1][sample][number], whole.grid)):
        return Shown(*coarse, pixels=report.slot_pixels or 0, resized=True)
    gathered = report.gathered[layer][sample][number] if layer in report.gathered else NONE
    found = Shown(whole.grid, _cells(place, slots), gathered=_cells(place, gathered))
    if not report.fates:
        return found
    parts = {name: _cells(place, of) for name, of in report.parts(stage, sample, number).items()}
    token = report.joined(stage, sample, number)
    own = torch.arange(len(token))
    simple = bool(((token == own) | (token == DROPPED)).all())
    if simple:
        return replace(found, parts=parts)
    return replace(
        found, token=_laid(token, place, whole.grid.size), own=_laid(own, place, whole.grid.size), parts=parts
    )


def _cells(place: Tensor, slots: Tensor) -> Tensor:
    cells = place[slots.cpu()]
    return cells[cells >= 0]


def _laid(values: Tensor, place: Tensor, cells: int) -> Tensor:
    """Values of slots as values of the cells that the slots show."""
    found = torch.full((cells,), DROPPED)
    found[place[place >= 0]] = values[place >= 0]
    return found


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


def kinds(shown: Shown) -> set[str]:
    """What occurs in it, for a legend: "dropped", "merged", "elsewhere", "untold", "gathered", "resized"."""
    found = set()
    values = torch.full((shown.grid.size,), DROPPED) if shown.token is None else shown.token
    dropped = values == DROPPED
    dropped[shown.kept[shown.kept >= 0]] = False
    for name, cells in (("dropped", dropped), ("elsewhere", values == PLACELESS), ("untold", values == UNTOLD)):
        if bool(cells.any()):
            found.add(name)
    if shown.merged:
        found.add("merged")
    if len(shown.gathered):
        found.add("gathered")
    if shown.resized:
        found.add("resized")
    return found
