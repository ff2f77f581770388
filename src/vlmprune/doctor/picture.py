"""The token layout as a picture: every slot a square, tile by tile, the sample picture beside them.

A pure function of its arguments: the same pixels on every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from vlmprune.core.errors import UserError
from vlmprune.core.outputs import save_picture
from vlmprune.doctor.layout import DROPPED, KEPT, NOTHING, Block, Layout, Shown, in_lines
from vlmprune.drawing.patches import CONTOUR
from vlmprune.drawing.sheet import FAINT, INK, PAPER, fit, wrap

DROPPED_GREY = (206, 210, 217)
OTHER_KEPT, OTHER_DROPPED = (52, 110, 180), (190, 208, 232)  # slots that show no patch
FRAME = (232, 234, 238)  # around a block, so that places without a slot are seen
COLORS = {False: {KEPT: CONTOUR, DROPPED: DROPPED_GREY}, True: {KEPT: OTHER_KEPT, DROPPED: OTHER_DROPPED}}
_MARGIN, _GAP, _COLUMN_GAP, _PAD = 24, 22, 44, 5
_KEY, _ENTRY = 24, 24  # pixels of the legend: before a text, and from one entry to the next
_SAMPLE = 320  # of the sample picture's longer side
_WIDTH = 680  # for blocks side by side
_ALONE, _AMONG = 300, 210  # at which the longer side of a block aims: of the only one, of one among others


class Piece(NamedTuple):
    """A drawn block under its heading."""

    image: Image.Image
    heading: str


def save_layout(layout: Layout, sample: Image.Image | None, title: str, method: str, target: Path) -> None:
    """Draw the layout and write it to `target`."""
    try:
        save_picture(draw_layout(layout, sample, title, method), target)
    except OSError as error:
        raise UserError(f"The picture cannot be written to {str(target)!r}: {error.strerror or error}.") from error


def draw_layout(layout: Layout, sample: Image.Image | None, title: str, method: str) -> Image.Image:
    """A page: title and counts; on the left the sample picture and a legend, on the right every slot as a square."""
    total, kept = sum(image.count for image in layout.images), layout.kept
    counts = (
        f"{total} visual tokens of {layout.length} in the prompt; with {method}, {kept} are kept and {total - kept} "
        "dropped."
    )
    left, right = _left_column(layout, sample), _right_column(layout)
    width = left.width + _COLUMN_GAP + right.width
    title_font, line_font = ImageFont.load_default(20), ImageFont.load_default(15)
    lines = [(line, title_font, INK) for line in wrap(title, title_font, width)]
    lines += [(line, line_font, FAINT) for line in wrap(counts, line_font, width)]
    top = _MARGIN + sum(_height(font) for _, font, _ in lines) + _GAP
    page = Image.new("RGB", (width + 2 * _MARGIN, top + max(left.height, right.height) + _MARGIN), PAPER)
    pen, y = ImageDraw.Draw(page), _MARGIN
    for text, font, color in lines:
        pen.text((_MARGIN, y), text, fill=color, font=font)
        y += _height(font)
    page.paste(left, (_MARGIN, top))
    page.paste(right, (_MARGIN + left.width + _COLUMN_GAP, top))
    return page


def _left_column(layout: Layout, sample: Image.Image | None) -> Image.Image:
    """The sample picture over a legend of the colours."""
    small, line = ImageFont.load_default(14), ImageFont.load_default(15)
    entries, legend, picture = _legend(layout), 0, None
    if sample is not None:
        picture = fit(sample)
        picture.thumbnail((_SAMPLE, _SAMPLE), Image.Resampling.LANCZOS)
        legend = picture.height + 6 + _height(small) + _GAP
    width = max([_SAMPLE, *(_KEY + round(line.getlength(text)) + 1 for _, text in entries)])
    column = Image.new("RGB", (width, legend + len(entries) * _ENTRY), PAPER)
    pen = ImageDraw.Draw(column)
    if picture is not None and sample is not None:
        column.paste(picture, (0, 0))
        size = f"the sample picture, {sample.width} x {sample.height}"
        pen.text((0, picture.height + 6), size, fill=FAINT, font=small)
    for number, (color, text) in enumerate(entries):
        y = legend + number * _ENTRY
        pen.rectangle((0, y + 2, 13, y + 15), fill=color)
        pen.text((_KEY, y), text, fill=INK, font=line)
    return column


def _right_column(layout: Layout) -> Image.Image:
    """All blocks under their headings, as many side by side as fit."""
    font = ImageFont.load_default(14)
    label = _height(font) + 4
    rows = list(_rows([piece for image in layout.images for piece in _pieces(image)], _WIDTH))
    heights = [label + max(piece.image.height for piece in row) for row in rows]
    width = max(sum(piece.image.width for piece in row) + _GAP * (len(row) - 1) for row in rows)
    column = Image.new("RGB", (width, sum(heights) + _GAP * (len(rows) - 1)), PAPER)
    pen, y = ImageDraw.Draw(column), 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for piece in row:
            pen.text((x, y), piece.heading, fill=INK, font=font)
            column.paste(piece.image, (x, y + label))
            x += piece.image.width + _GAP
        y += height + _GAP
    return column


def _pieces(image: Shown) -> Iterator[Piece]:
    font = ImageFont.load_default(14)
    aim = _ALONE if len(image.blocks) == 1 else _AMONG
    side = max(5, min(22, aim // max(max(block.marks.shape) for block in image.blocks)))
    drawn = [(_squares(block, side), block.title or _name(image)) for block in image.blocks]
    if len(image.others):
        name = "slots without a patch" if image.others_name == "other" else f"{image.others_name} slots"
        others = Block("", in_lines(image.others))
        drawn.append((_squares(others, side, other=True), f"{len(image.others)} {name}"))
    for squares, heading in drawn:
        wide = max(squares.width, round(font.getlength(heading)) + 2)
        whole = Image.new("RGB", (wide, squares.height), PAPER)
        whole.paste(squares, (0, 0))
        yield Piece(whole, heading)


def _name(image: Shown) -> str:
    """Over the only block of an image."""
    grid = image.grid
    return f"{image.count} slots in order" if grid is None else f"{grid.rows} x {grid.cols} slots"


def _squares(block: Block, side: int, other: bool = False) -> Image.Image:
    """Squares of `side` pixels, a line of paper between them, in a thin frame."""
    rows, cols = block.marks.shape
    image = Image.new("RGB", (cols * side + 2 * _PAD, rows * side + 2 * _PAD), PAPER)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, image.width - 1, image.height - 1), outline=FRAME)
    line = 2 if side >= 12 else 1
    for row, marks in enumerate(block.marks.tolist()):
        for col, mark in enumerate(marks):
            if mark != NOTHING:
                x, y = _PAD + col * side, _PAD + row * side
                pen.rectangle((x, y, x + side - 1 - line, y + side - 1 - line), fill=COLORS[other][mark])
    return image


def _rows(pieces: list[Piece], width: int) -> Iterator[list[Piece]]:
    """As many pieces side by side as fit into `width`."""
    row: list[Piece] = []
    for piece in pieces:
        if row and sum(other.image.width + _GAP for other in row) + piece.image.width > width:
            yield row
            row = []
        row.append(piece)
    yield row


def _legend(layout: Layout) -> list[tuple[tuple[int, int, int], str]]:
    others = [mark for image in layout.images for mark in image.others.tolist()]
    total = sum(image.count for image in layout.images) - len(others)
    kept = layout.kept - others.count(KEPT)
    entries = [(CONTOUR, f"kept: {kept}"), (DROPPED_GREY, f"dropped: {total - kept}")]
    if others:
        names = dict.fromkeys(image.others_name for image in layout.images if len(image.others))
        name = " and ".join("other" if name == "other" else name for name in names)
        entries.append((OTHER_KEPT, f"{name} (shows no patch), kept: {others.count(KEPT)}"))
        entries.append((OTHER_DROPPED, f"{name} (shows no patch), dropped: {others.count(DROPPED)}"))
    return entries


def _height(font: Any) -> int:
    return round(font.size * 1.35)
