"""Rows of CSV and TSV files, and the pictures in VLMEvalKit's: base64, or the index of an earlier row's picture.

Such files have gigabytes, so a picture that rows share is read again from its place in the file, and never kept.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from vlmprune.core.errors import UserError
from vlmprune.data.encoded import decode_base64

INDEX, IMAGE = "index", "image"  # the columns of VLMEvalKit's files
_SHORT = 64  # characters; VLMEvalKit takes a longer cell for a picture
_LONGEST_CELL = 2**31 - 1


@dataclass(frozen=True)
class EarlierImage:
    """The picture of an earlier row, base64.

    Attributes:
        path: the file.
        start: the byte at which the row begins.
        column: number of the picture's cell.
        separator: of the cells.
    """

    path: Path
    start: int
    column: int
    separator: str

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start)
            row = next(_Reader(file, self.separator))
        return decode_base64(row[self.column])


class _Lines:
    """The lines of a file as text, and the byte at which the next one begins."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.place = file, file.tell()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self.file)
        self.place += len(line)
        return line.decode("utf-8", errors="surrogateescape")


class _Reader:
    """Cells of each row, and the byte at which it begins.

    It is no part of a circle of references: its buffer, as large as the largest picture, goes when it goes.
    """

    def __init__(self, file: IO[bytes], separator: str) -> None:
        self.lines, self.start, self.separator = _Lines(file), 0, separator
        # strict: a quotation mark that is never closed would swallow the rows behind it without a word
        self.rows = csv.reader(self.lines, delimiter=separator, strict=True)

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> list[str]:
        self.start = self.lines.place
        return next(self.rows)


def separated_rows(path: Path, separators: str, problem: str) -> Iterator[dict[str, Any]]:
    """The rows of a file whose first line names the columns.

    Args:
        separators: what may stand between cells; the first that is in the first line does.
        problem: the column that says why a row cannot be read.

    Raises:
        UserError: two columns have one name.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with path.open("rb") as file:
        start = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
        file.seek(start)
        first = file.readline().decode("utf-8", errors="replace")
        file.seek(start)
        reader = _Reader(file, next((one for one in separators if one in first), separators[0]))
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise UserError(f"{str(path)!r} has no line of column names first: {error}.") from None
        _check_header(path, header)
        images: dict[str, int] = {}  # by index, the byte at which the row with the picture begins
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield {problem: f"the line cannot be split into cells: {error}"}
                continue
            if cells:
                row = _row(cells, header, problem)
                if problem not in row and INDEX in row and row.get(IMAGE):
                    image = EarlierImage(path, reader.start, header.index(IMAGE), reader.separator)
                    row |= _shared_image(row, images, image, problem)
                yield row


def _row(cells: list[str], header: list[str], problem: str) -> dict[str, Any]:
    """The cells by column; what can be read of a damaged row."""
    row: dict[str, Any] = dict(zip(header, cells, strict=False))
    if why := _fault(cells, header):
        return {**{name: cell for name, cell in row.items() if _is_utf8(cell)}, problem: why}
    return row


def _check_header(path: Path, header: Sequence[str]) -> None:
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise UserError(f"{str(path)!r} has two columns {twice[0]!r}: give each a name of its own.")


def _fault(cells: list[str], header: list[str]) -> str:
    if len(cells) != len(header):
        return f"the line has {len(cells)} cells, and {len(header)} columns are named"
    if any(not _is_utf8(cell) for cell in cells):
        return "the line is not text in UTF-8"
    return ""


def _is_utf8(cell: str) -> bool:
    if cell.isascii():
        return True
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shared_image(row: dict[str, Any], images: dict[str, int], here: EarlierImage, problem: str) -> dict[str, Any]:
    """What changes in a row whose picture is that of an earlier one; notes where the picture is.

    Args:
        here: the picture of this row, if it has one of its own.
    """
    cell, index = row[IMAGE].strip(), row[INDEX].strip()
    if len(cell) > _SHORT:
        images.setdefault(index, here.start)
        return {}
    if not cell.isdigit() or (here.path.parent / cell).is_file():
        return {}
    if cell not in images:
        return {problem: f"its picture is that of the row {cell}, and no row before has that index and a picture"}
    images.setdefault(index, images[cell])
    return {IMAGE: replace(here, start=images[cell])}
