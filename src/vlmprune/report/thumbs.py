"""Small pictures beside the answers that flipped, each stored once in the page however often it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vlmprune.bench.redrawn import redrawn
from vlmprune.bench.table import Table
from vlmprune.drawing.html import data_url
from vlmprune.report.flips import Flip

_SIDE, _COLORS = 80, 32


@dataclass(frozen=True)
class Thumb:
    """A picture of the page.

    Attributes:
        id: in the page.
        size: (width, height), pixels.
        uri: its PNG.
    """

    id: str
    size: tuple[int, int]
    uri: str


def thumbs(table: Table, shown: Iterable[Flip], name: str) -> Mapping[tuple[str, str], Thumb]:
    """Of the shown answers' pictures, those that can be drawn once more, by task and id of the question.

    Args:
        name: of the model in the page; ids begin with it.
    """
    wanted: dict[str, dict[str, str]] = {}
    for flip in shown:
        wanted.setdefault(flip.task, {})[flip.id] = flip.question
    found: dict[tuple[str, str], Thumb] = {}
    by_uri: dict[str, Thumb] = {}
    for task, questions in wanted.items():
        result = next(row.cells[task].result for row in table.rows if task in row.cells)
        for id_, picture in redrawn(result, questions).items():
            small = picture.convert("RGB")
            small.thumbnail((_SIDE, _SIDE))
            uri = data_url(small.quantize(_COLORS))
            found[task, id_] = by_uri.setdefault(uri, Thumb(f"{name}-t{len(by_uri) + 1}", small.size, uri))
    return found
