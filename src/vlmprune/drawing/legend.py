"""A legend: what outlines, tints and hatching mean, of what occurs in some pictures."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from vlmprune.drawing.patches import CONTOUR, ELSEWHERE, GATHERED, GREY, GREY_SHARE, PARTS, TINT_SHARE, TINTS
from vlmprune.drawing.sheet import Key
from vlmprune.drawing.shown import Shown, kinds

SIDE = 18
_SAMPLE = (120, 160, 96)  # the colour of a patch of nowhere
_FADED = round(GREY_SHARE * 140 + (1 - GREY_SHARE) * GREY)


def legend(several: Sequence[Shown]) -> list[Key]:
    """Keys for all that occurs in these pictures; none where everything was kept as it is."""
    found = set().union(*(kinds(one) for one in several)) if several else set()
    names = list(dict.fromkeys(name for one in several for name in one.parts))
    if not found and not names:
        return []
    plain = any(not one.parts and not one.resized for one in several)
    keys = [Key(_square(_SAMPLE, CONTOUR), "kept")] if plain else []
    keys += [Key(_square(_SAMPLE, PARTS[k % len(PARTS)]), name) for k, name in enumerate(names)]
    words = {
        "merged": (_tints(), "merged: a tint for each token, which stands at the patch in its own colours"),
        "elsewhere": (_square(_mixed(ELSEWHERE)), "merged into a token that stands at no patch here"),
        "gathered": (_hatched(), "attended to by the others, then dropped"),
        "resized": (_square(_SAMPLE, CONTOUR), "the picture as the model saw it, a token for each square"),
        "untold": (_square((_FADED,) * 3), "dropped, or merged: the method does not say which"),
        "dropped": (_square((_FADED,) * 3), "dropped"),
    }
    return keys + [Key(*words[kind]) for kind in words if kind in found]


def _mixed(tint: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (round((1 - TINT_SHARE) * _FADED + TINT_SHARE * value) for value in tint)
    return red, green, blue


def _square(fill: tuple[int, ...], outline: tuple[int, int, int] | None = None) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), tuple(fill))
    if outline is not None:
        ImageDraw.Draw(image).rectangle((0, 0, SIDE - 1, SIDE - 1), outline=outline, width=3)
    return image


def _tints() -> Image.Image:
    image = Image.new("RGB", (3 * SIDE + 2, SIDE), (250, 250, 250))
    for number in range(3):
        image.paste(_square(_mixed(TINTS[number])), (number * (SIDE + 1), 0))
    return image


def _hatched() -> Image.Image:
    image = _square((_FADED,) * 3)
    pen = ImageDraw.Draw(image)
    for start in range(0, 2 * SIDE, 6):
        pen.line((start, 0, start - SIDE, SIDE), fill=GATHERED, width=2)
    return image
