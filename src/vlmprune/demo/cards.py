"""The results as HTML: for each way to ask a card with the picture, the answer, token counts and times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlmprune.ask.run import Answer
from vlmprune.core.errors import UserError
from vlmprune.demo.asking import Result
from vlmprune.demo.patches import patches_of
from vlmprune.drawing.html import data_url, template
from vlmprune.drawing.legend import legend
from vlmprune.drawing.overlay import is_flip
from vlmprune.drawing.patches import draw
from vlmprune.drawing.sheet import fit
from vlmprune.drawing.shown import shown_of
from vlmprune.drawing.window import window_on

FOLDER = Path(__file__).parent
_SIDE = 448  # pixels of a picture's longer side, about


def cards(
    image: Image.Image, processor: Any, results: Sequence[Result], waiting: str = "", link: str = "", head: str = ""
) -> str:
    """All cards as one piece of HTML, under a legend.

    Args:
        image: the picture that was asked about.
        processor: the model's, which says which part of the picture the model saw.
        waiting: for which answer the visitor waits; empty when all are there.
        link: the query of the settings.
        head: the question.
    """
    picture = fit(image, _SIDE, _SIDE)
    plain = next((one.answer for one in results if one.answer is not None and one.answer.report is None), None)
    drawn = [_card(picture, image, processor, one, plain) for one in results]
    whole = next((card["tokens"][0] for card in drawn if card.get("tokens")), None)
    shown = [one["shown"] for one in drawn if one["shown"] is not None]
    keys = [(data_url(key.swatch), key.text) for key in legend(shown)]
    notes = list(dict.fromkeys(note for one in results for note in one.notes))
    return template(FOLDER / "cards.html.j2").render(
        cards=drawn, whole=whole, keys=keys, notes=notes, waiting=waiting, link=link, head=head
    )


def _card(
    picture: Image.Image, image: Image.Image, processor: Any, one: Result, plain: Answer | None
) -> dict[str, Any]:
    card: dict[str, Any] = {"name": one.name, "problem": one.problem, "shown": None, "patches": None, "undrawn": ""}
    if one.answer is None:
        return card
    report = one.answer.report
    card |= {"answer": one.answer.text, "first": one.answer.first, "seconds": one.answer.seconds, "tokens": None}
    card["changed"] = report is not None and plain is not None and is_flip(one.answer.text, plain.text)
    if report is not None and report.tokens:
        card |= {"tokens": report.tokens[0], "entering": report.entering[0], "selecting": report.seconds}
        card |= _drawing(picture, image, processor, one.answer)
    else:
        card["picture"] = data_url(picture, "WEBP")
    return card


def _drawing(picture: Image.Image, image: Image.Image, processor: Any, one: Answer) -> dict[str, Any]:
    """What is drawn of a run: the picture, and what a click on a patch says."""
    report = one.report
    assert report is not None
    if not report.wholes[0][0]:
        sentence = "The visual tokens of this model form no grid that vlmprune knows: they cannot be drawn."
        return {"picture": data_url(picture, "WEBP"), "undrawn": sentence}
    whole = report.wholes[0][0][0]
    try:
        window = window_on(picture, image, processor)
        shown = shown_of(report, whole)
        patches = patches_of(report, whole).facts()
        drawn = draw(picture, shown, window=window)
    except UserError as error:  # the answer stands all the same
        return {"picture": data_url(picture, "WEBP"), "undrawn": str(error)}
    across, down = picture.width, picture.height
    seen = [window.left / across, window.top / down, window.right / across, window.bottom / down]
    return {"picture": data_url(drawn, "WEBP"), "shown": shown, "patches": json.dumps({**patches, "window": seen})}
