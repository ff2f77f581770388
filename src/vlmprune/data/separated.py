"""Rows of CSV and TSV files, and the pictures in VLMEvalKit's: base64, or the index of an earlier row's picture.

Such files have gigabytes, so a picture that rows share is read again from its place in the file, and never kept.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


class _Reader:
    """Cells of each row, and the byte at which it begins."""

    def __init__(self, file: IO[bytes], separator: str) -> None:
        self.file, self.start, self.place = file, file.tell(), file.tell()
        # strict: a quotation mark that is never closed would swallow the rows behind it without a word
        self.rows = csv.reader(self._lines(), delimiter=separator, strict=True)

    def _lines(self) -> Iterator[str]:
        for line in self.file:
            self.place += len(line)
            yield line.decode("utf-8", errors="surrogateescape")

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> list[str]:
        self.start = self.place
        return next(self.rows)


def separated_rows(path: Path, separator: str, problem: str) -> Iterator[dict[str, Any]]:
    """The rows of a file whose first line names the columns.

    Args:
        problem: the column that says why a row cannot be read.

    Raises:
        UserError: two columns have one name.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with path.open("rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        reader = _Reader(file, separator)
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
            if not cells:
                continue
            if why := _fault(cells, header):
                yield {**_whole(dict(zip(header, cells, strict=False))), problem: why}
                continue
            row: dict[str, Any] = dict(zip(header, cells, strict=True))
            if INDEX in row and row.get(IMAGE):
                row |= _shared_image(row, images, reader.start, (path, header.index(IMAGE), separator), problem)
            yield row


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


def _whole(row: dict[str, str]) -> dict[str, str]:
    """What can be read of a damaged row."""
    return {name: cell for name, cell in row.items() if _is_utf8(cell)}


def _is_utf8(cell: str) -> bool:
    if cell.isascii():
        return True
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shared_image(
    row: dict[str, Any], images: dict[str, int], start: int, where: tuple[Path, int, str], problem: str
) -> dict[str, Any]:
    """What changes in a row whose picture is that of an earlier one; notes where the picture is."""
    path, column, separator = where
    cell, index = row[IMAGE].strip(), row[INDEX].strip()
    if len(cell) > _SHORT:
        images.setdefault(index, start)
        return {}
    if not cell.isdigit() or (path.parent / cell).is_file():
        return {}
    if cell not in images:
        return {problem: f"its picture is that of the row {cell}, and no row before has that index and a picture"}
    images.setdefault(index, images[cell])
    return {IMAGE: EarlierImage(path, images[cell], column, separator)}
