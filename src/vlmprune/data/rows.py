"""Rows of a data file, one at a time: JSON lines, JSON, CSV, TSV and parquet."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlmprune.core.errors import UserError

Row = dict[str, Any]
FILE = "_file"  # the column with the file's name without its ending
LINE = "_line"  # the column with the row's number, from 1


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file by its ending, each with the columns `_file` and `_line`.

    A row that cannot be read is given as its number alone.

    Raises:
        UserError: the file cannot be read, or its ending is not known.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{str(path)!r} is no data file: its name must end in {', '.join(READERS)}.")
    try:
        for number, row in enumerate(reader(path), 1):
            yield {FILE: path.stem, LINE: number, **row}
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{str(path)!r} cannot be read: it is not text in UTF-8.") from None


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            yield row if isinstance(row, dict) else {}


def _json(path: Path) -> Iterator[Row]:
    """A list of rows, or rows by id."""
    with path.open(encoding="utf-8-sig") as file:
        if file.read(4096).lstrip()[:1] == "{":
            file.seek(0)
            if _is_whole(file.readline()):  # one object a line, whatever the ending says
                yield from _json_lines(path)
                return
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not JSON: {error}.") from None
    if isinstance(content, dict):
        content = [{"id": key, **row} if isinstance(row, dict) else {} for key, row in content.items()]
    yield from (row if isinstance(row, dict) else {} for row in content)


def _is_whole(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _separated(separator: str) -> Callable[[Path], Iterator[Row]]:
    def rows(path: Path) -> Iterator[Row]:
        csv.field_size_limit(sys.maxsize)  # a picture in base64 is one field
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file, delimiter=separator)

    return rows


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowInvalid, parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=16):
            yield from batch.to_pylist()
    except ArrowInvalid:
        raise UserError(f"{str(path)!r} is not a parquet file, or it is damaged.") from None


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
