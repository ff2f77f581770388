"""Pictures and lines of text laid out on one white sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = (255, 255, 255), (28, 30, 34), (96, 102, 112)
_MARGIN, _GAP = 20, 16


class Panel(NamedTuple):
    """A picture of a sheet and the lines of text under it."""

    image: Image.Image
    label: str


def fit(image: Image.Image, low: int = 448, high: int = 896) -> Image.Image:
    """The picture as RGB, its longer side at least `low` (enlarged by a whole number) and at most `high` pixels."""
    image = image.convert("RGB")
    longest = max(image.size)
    if longest < low:
        factor = -(-low // longest)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    if longest > high:
        scale = high / longest
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return image.resize(size, Image.Resampling.LANCZOS)
    return image


def sheet(panels: Sequence[Panel], columns: int, lines: Sequence[str] = ()) -> Image.Image:
    """Panels in rows of `columns` on white, each over its label, under a title and further lines."""
    cell_width = max(panel.image.width for panel in panels)
    label_font, title_font, line_font = (ImageFont.load_default(size) for size in (15, 20, 15))
    columns = max(1, min(columns, len(panels)))
    width = 2 * _MARGIN + columns * cell_width + (columns - 1) * _GAP
    heading = [
        (row, title_font if k == 0 else line_font, INK if k == 0 else FAINT)
        for k, line in enumerate(lines)
        for row in wrap(line, title_font if k == 0 else line_font, width - 2 * _MARGIN)
    ]
    heading_height = sum(_line_height(font) for _, font, _ in heading) + (_GAP // 2 if heading else 0)
    labels = [wrap(panel.label, label_font, cell_width) for panel in panels]
    rows = [range(start, min(start + columns, len(panels))) for start in range(0, len(panels), columns)]
    picture_heights = [max(panels[k].image.height for k in row) for row in rows]
    label_heights = [max(len(labels[k]) for k in row) * _line_height(label_font) + 6 for row in rows]
    height = 2 * _MARGIN + heading_height + sum(picture_heights) + sum(label_heights) + _GAP * (len(rows) - 1)

    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    y = _MARGIN
    for text, font, color in heading:
        pen.text((_MARGIN, y), text, fill=color, font=font)
        y += _line_height(font)
    y += _GAP // 2 if heading else 0
    for row, picture_height, label_height in zip(rows, picture_heights, label_heights, strict=True):
        for place, k in enumerate(row):
            x = _MARGIN + place * (cell_width + _GAP)
            page.paste(panels[k].image, (x, y))
            for number, text in enumerate(labels[k]):
                below = y + panels[k].image.height + 6 + number * _line_height(label_font)
                pen.text((x, below), text, fill=INK if number == 0 else FAINT, font=label_font)
        y += picture_height + label_height + _GAP
    return page


def wrap(text: str, font: Any, width: float) -> list[str]:
    """The lines of a text, broken at spaces where it is wider than `width` pixels."""
    lines: list[str] = []
    for part in text.split("\n"):
        line = ""
        for word in part.split(" "):
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return lines


def _line_height(font: Any) -> int:
    return round(font.size * 1.35)


def shorten(text: str, most: int) -> str:
    """The text on one line, cut after `most` characters; "(nothing)" for an empty one."""
    line = " ".join(text.split()) or "(nothing)"
    return line if len(line) <= most else line[:most].rstrip() + " …"
