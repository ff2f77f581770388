"""Several methods on the same picture and question, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from vlmprune.drawing.legend import legend
from vlmprune.drawing.patches import draw
from vlmprune.drawing.sheet import Panel, fit, sheet, shorten
from vlmprune.drawing.shown import Shown
from vlmprune.drawing.window import Window

_LOW, _HIGH = 224, 336  # pixels of a panel's longer side
_FEW = 12  # panels, up to which three are side by side, as a narrow screen can show
_ANSWER = 120  # characters


class Side(NamedTuple):
    """One panel.

    Attributes:
        name: the recipe.
        shown: what it left; None of the unpruned model.
        tokens: visual tokens that are left.
        place: where it cut last, in words.
        answer: the reply; None where it is not known.
        verdict: what is said after it, such as "right".
        flipped: whether it is another than the unpruned one.
    """

    name: str
    shown: Shown | None
    tokens: int
    place: str = ""
    answer: str | None = None
    verdict: str = ""
    flipped: bool = False

    @property
    def label(self) -> str:
        where = f" {self.place}" if self.place else ""
        said = "" if self.answer is None else f"\n“{shorten(self.answer, _ANSWER)}” {self.verdict}".rstrip()
        return f"{self.name}: {self.tokens} tokens{where}{said}"


@dataclass(frozen=True)
class Comparison:
    """A picture, and what became of it.

    Attributes:
        image: the picture.
        window: the part of it that the model saw, in its pixels.
        sides: the panels; the unpruned model comes first.
    """

    image: Image.Image
    window: Window
    sides: Sequence[Side]

    def sheet(self, lines: Sequence[str] = ()) -> Image.Image:
        """All panels, three or four in a row, under lines of text and a legend."""
        picture = fit(self.image, _LOW, _HIGH)
        window = self.window.scaled(picture.width / self.image.width, picture.height / self.image.height)
        panels = [
            Panel(picture if one.shown is None else draw(picture, one.shown, window=window), one.label, one.flipped)
            for one in self.sides
        ]
        across = 3 if len(panels) <= _FEW else 4
        return sheet(panels, across, lines, legend([one.shown for one in self.sides if one.shown is not None]))
