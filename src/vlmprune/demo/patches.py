"""What became of each patch of a picture, in sentences: what a page says about the one that is clicked."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from vlmprune.core.fates import DROPPED, PLACELESS, UNTOLD
from vlmprune.core.report import RunReport
from vlmprune.core.view import Whole
from vlmprune.drawing.run import place_of
from vlmprune.drawing.shown import Shown, shown_of


@dataclass(frozen=True)
class Patches:
    """The cells of the grid over a picture.

    Attributes:
        rows, cols: of the grid.
        sentences: each one once.
        said: [cells] the number of the sentence about each cell.
        into: [cells] the cell at which the token stands that the patch was merged into; -1 where it was not.
        scores: [cells] the method's own score of each cell's token, and which place that is; "" where it has none.
    """

    rows: int
    cols: int
    sentences: tuple[str, ...]
    said: tuple[int, ...]
    into: tuple[int, ...]
    scores: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {name: getattr(self, name) for name in ("rows", "cols", "sentences", "said", "into", "scores")}


def patches_of(report: RunReport, whole: Whole) -> Patches:
    """What became of the cells of one way in which the slots of a prompt's first image cover its picture."""
    shown = shown_of(report, whole)
    rows, cols = shown.grid.rows, shown.grid.cols
    if shown.resized:
        told, scores = _resized(shown), [""] * shown.grid.size
    else:
        telling = _Telling(report, whole, shown)
        told, scores = telling.told(), telling.scores()
    sentences = tuple(dict.fromkeys(sentence for sentence, _ in told))
    number = {sentence: place for place, sentence in enumerate(sentences)}
    said, into = tuple(number[said] for said, _ in told), tuple(into for _, into in told)
    return Patches(rows, cols, sentences, said, into, tuple(scores))


def _resized(shown: Shown) -> list[tuple[str, int]]:
    kept = set(shown.kept.tolist())
    sentence = "the picture was made smaller, and this square of it is one token"
    return [(sentence if cell in kept else "dropped", -1) for cell in range(shown.grid.size)]


class _Telling:
    """Tells what became of the cells of one picture."""

    def __init__(self, report: RunReport, whole: Whole, shown: Shown) -> None:
        self.cols, self.cells = shown.grid.cols, whole.cells.tolist()
        self.slots = {cell: slot for slot, cell in reversed([*enumerate(self.cells)]) if cell >= 0}
        self.places = [place_of(layer) for layer, _ in report.stages]
        self.joined = [report.joined(stage).tolist() for stage in range(len(report.stages))]
        self.kinds = {cell: name for name, cells in shown.parts.items() for cell in cells.tolist()}
        self.gathered = set(shown.gathered.tolist())
        self.ratings = report.ratings()
        last = self.joined[-1] if self.joined else []
        self.held = Counter(token for slot, token in enumerate(last) if token >= 0 and token != slot)

    def told(self) -> list[tuple[str, int]]:
        """The sentence about each cell, and the cell that it was merged into."""
        return [self._cell(cell) for cell in self._all()]

    def scores(self) -> list[str]:
        """The method's score of the token at each cell, and which place that is among all."""
        known = self.ratings[~self.ratings.isnan()]
        words = []
        for cell in self._all():
            value = float(self.ratings[self.slots[cell]]) if cell in self.slots else math.nan
            place = 1 + int((known > value).sum())
            words.append("" if math.isnan(value) else f"score {value:.3g}, place {place} of {len(known)}")
        return words

    def _all(self) -> range:
        return range(max((*self.slots, *self.cells, -1)) + 1)

    def _cell(self, cell: int) -> tuple[str, int]:
        slot = self.slots.get(cell)
        if slot is None:
            return "no token shows this patch", -1
        history = [values[slot] for values in self.joined]
        end = history[-1] if history else slot
        if end == slot:
            return self._kept(cell, slot), -1
        since = next(stage for stage in range(len(history)) if all(value == end for value in history[stage:]))
        place = self.places[since]
        if end >= 0:
            into = self.cells[end]
            return f"merged {place} into the token at {self._where(into)}", into
        words = {
            DROPPED: "dropped",
            PLACELESS: "merged into a token that stands at no patch",
            UNTOLD: "dropped or merged (the method does not say which)",
        }
        seen = ", after the other tokens were made to attend to it" if cell in self.gathered else ""
        return f"{self._before(history[since - 1] if since else slot, slot)}{words[end]} {place}{seen}", -1

    def _before(self, token: int, slot: int) -> str:
        """What had become of a patch whose token was lost later."""
        return f"merged into the token at {self._where(self.cells[token])}, which was " if 0 <= token != slot else ""

    def _kept(self, cell: int, slot: int) -> str:
        kind = f" ({self.kinds[cell]})" if cell in self.kinds else ""
        held = self.held[slot]
        more = f"; its token also holds {held} other patch{'es' * (held != 1)}" if held else ""
        return f"kept{kind}{more}"

    def _where(self, cell: int) -> str:
        return (
            f"row {cell // self.cols + 1}, column {cell % self.cols + 1}" if cell >= 0 else "no patch of this picture"
        )
