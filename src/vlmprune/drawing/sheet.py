"""Pictures and lines of text laid out on one white sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = (255, 255, 255), (28, 30, 34), (96, 102, 112)
FLIPPED = (176, 24, 36)
_FRAME = (206, 208, 212)  # around a picture, which may be white
_MARGIN, _GAP, _TEXT = 20, 18, 17
_NARROW = 224  # a label needs so many pixels


class Panel(NamedTuple):
    """A picture of a sheet and the lines of text under it.

    Attributes:
        flipped: whether its answer is another than the unpruned model's, which is marked.
    """

    image: Image.Image
    label: str
    flipped: bool = False


class Key(NamedTuple):
    """An entry of a legend."""

    swatch: Image.Image
    text: str


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


def sheet(panels: Sequence[Panel], columns: int, lines: Sequence[str] = (), legend: Sequence[Key] = ()) -> Image.Image:
    """Panels in rows of `columns` on white, each over its label, under a title, further lines and a legend."""
    cell_width = max(_NARROW, *(panel.image.width for panel in panels))
    columns = max(1, min(columns, len(panels)))
    width = columns * cell_width + (columns - 1) * _GAP
    head = _heading(lines, legend, width)
    cells = [_cell(panel, cell_width) for panel in panels]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    height = 2 * _MARGIN + head.height + sum(heights) + _GAP * (len(rows) - 1)
    page = Image.new("RGB", (width + 2 * _MARGIN, height), PAPER)
    page.paste(head, (_MARGIN, _MARGIN))
    y = _MARGIN + head.height
    for row, row_height in zip(rows, heights, strict=True):
        for place, cell in enumerate(row):
            page.paste(cell, (_MARGIN + place * (cell_width + _GAP), y))
        y += row_height + _GAP
    return page


def _heading(lines: Sequence[str], legend: Sequence[Key], width: int) -> Image.Image:
    title, plain = ImageFont.load_default(22), ImageFont.load_default(_TEXT)
    rows = [
        (row, title if k == 0 else plain, INK if k == 0 else FAINT)
        for k, line in enumerate(lines)
        for row in wrap(line, title if k == 0 else plain, width)
    ]
    keys = _placed(legend, plain, width)
    height = sum(_line_height(font) for _, font, _ in rows) + sum(row for _, row in keys)
    head = Image.new("RGB", (width, height + (_GAP // 2 if height else 0)), PAPER)
    pen, y = ImageDraw.Draw(head), 0
    for text, font, color in rows:
        pen.text((0, y), text, fill=color, font=font)
        y += _line_height(font)
    for row, row_height in keys:
        for key, x, text in row:
            head.paste(key.swatch, (x, y + 2))
            pen.multiline_text((x + key.swatch.width + 7, y), text, fill=INK, font=plain, spacing=4)
        y += row_height
    return head


def _placed(legend: Sequence[Key], font: Any, width: int) -> list[tuple[list[tuple[Key, int, str]], int]]:
    """The keys in lines no wider than `width`, each with its place and its text broken to fit; each line's height."""
    found: list[tuple[list[tuple[Key, int, str]], int]] = []
    row: list[tuple[Key, int, str]] = []
    x = most = 0
    for key in legend:
        start = key.swatch.width + 7
        text = wrap(key.text, font, width - start)
        wide = start + round(max(font.getlength(line) for line in text)) + 22
        if row and x + wide - 22 > width:
            found.append((row, most))
            row, x, most = [], 0, 0
        row.append((key, x, "\n".join(text)))
        x, most = x + wide, max(most, len(text) * _line_height(font) + 4)
    return [*found, (row, most)] if row else found


def _cell(panel: Panel, width: int) -> Image.Image:
    """A picture over its label; a bar between them where its answer is another than the unpruned one."""
    font = ImageFont.load_default(_TEXT)
    name, *rest = panel.label.split("\n", 1)
    lines = [(line, INK) for line in wrap(name, font, width)]
    lines += [(line, FLIPPED if panel.flipped else FAINT) for text in rest for line in wrap(text, font, width)]
    top = panel.image.height + (10 if panel.flipped else 5)
    cell = Image.new("RGB", (width, top + len(lines) * _line_height(font) + 4), PAPER)
    cell.paste(panel.image, (0, 0))
    pen = ImageDraw.Draw(cell)
    if panel.flipped:
        pen.rectangle((0, panel.image.height + 3, panel.image.width - 1, panel.image.height + 7), fill=FLIPPED)
    pen.rectangle((0, 0, panel.image.width - 1, panel.image.height - 1), outline=_FRAME)
    for number, (text, color) in enumerate(lines):
        pen.text((0, top + number * _line_height(font)), text, fill=color, font=font)
    return cell


def below(pages: Sequence[Image.Image]) -> Image.Image:
    """Sheets one below another."""
    whole = Image.new("RGB", (max(page.width for page in pages), sum(page.height for page in pages)), PAPER)
    y = 0
    for page in pages:
        whole.paste(page, (0, y))
        y += page.height
    return whole


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
