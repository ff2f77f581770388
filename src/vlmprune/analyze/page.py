"""One HTML page of all studies, which needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import vlmprune
from vlmprune.analyze.pictures import Picture
from vlmprune.analyze.study import Finding
from vlmprune.drawing.html import template
from vlmprune.report.plots import inline_svg

_PAGE = Path(__file__).parent / "page.html.j2"
_LONGEST = 60  # rows of a table that the page shows; the CSV file has all


def render(model: str, pictures: Sequence[Picture], done: Sequence[tuple[str, Finding | None, str]]) -> str:
    """The page as HTML.

    Args:
        done: for each study its name, what it found, or the sentence that says why it was left out.
    """
    studies = [
        {
            "name": name,
            "finding": finding,
            "figures": [inline_svg(figure, title) for title, figure in finding.figures.items()],
            "sheet": next(((title, sheet) for title, sheet in finding.sheets.items()), None),
        }
        for name, finding, _ in done
        if finding is not None
    ]
    return template(_PAGE).render(
        model=model,
        pictures=pictures,
        studies=studies,
        refused=[(name, why) for name, finding, why in done if finding is None],
        longest=_LONGEST,
        version=vlmprune.__version__,
        missing=lambda cell: cell == "" or cell != cell,
    )
