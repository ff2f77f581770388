"""Rows of a data file, one at a time: JSON lines, JSON, CSV, TSV and parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from vlmprune.core.errors import UserError
from vlmprune.core.extras import load_package
from vlmprune.data.separated import separated_rows
from vlmprune.data.stream import json_rows

Row = dict[str, Any]
FILE = "_file"  # the column with the file's name without its ending
LINE = "_line"  # the column with the row's number, from 1; in JSON lines the number of the line
PROBLEM = "_problem"  # the column that says why a row cannot be read


class Later(Protocol):
    """A cell with the bytes of a picture, which are read when they are needed."""

    def read(self) -> bytes:
        """The bytes.

        Raises:
            OSError, ValueError: they cannot be read.
        """
        ...


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file by its ending, each with the columns `_file` and `_line`.

    A row that cannot be read has these and `_problem`.

    Raises:
        UserError: the file cannot be read, or its ending is not known.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{str(path)!r} is no data file: its name must end in {', '.join(READERS)}.")
    try:
        for number, row in enumerate(reader(path), 1):
            if row is not None:
                yield {FILE: path.stem, LINE: number, **row}
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{str(path)!r} cannot be read: it is not text in UTF-8.") from None


def _json_lines(path: Path) -> Iterator[Row | None]:
    """A row a line; None for an empty line, which counts."""
    with path.open("rb") as file:
        for number, line in enumerate(file):
            yield _json_line(line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line)


def _json_line(line: bytes) -> Row | None:
    if not line.strip():
        return None
    try:
        return object_row(json.loads(line))
    except UnicodeDecodeError:
        return {PROBLEM: "the line is not text in UTF-8"}
    except (ValueError, RecursionError):
        return {PROBLEM: "the line is not JSON"}


def object_row(value: Any) -> Row:
    """A JSON value as a row."""
    return value if isinstance(value, dict) else {PROBLEM: "it is not an object with columns, {...}"}


def _json(path: Path) -> Iterator[Row | None]:
    """A list of rows, rows by id, or, whatever the ending says, one object a line."""
    with path.open(encoding="utf-8-sig") as file:
        listed = file.read(1) == "["
        file.seek(0)
        first = "" if listed else file.readline()
        lines = _is_row(first) or (_is_object(first) and any(line.strip() for line in file))
    if lines:
        yield from _json_lines(path)
        return
    for key, value in json_rows(path):
        row = object_row(value)
        yield row if key is None or PROBLEM in row else {"id": key, **row}


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _is_row(line: str) -> bool:
    """Whether a line holds a row: an object, and not one of rows by id."""
    return _is_object(line) and not all(isinstance(value, dict) for value in json.loads(line).values())


def _parquet(path: Path) -> Iterator[Row]:
    parquet, lib = load_package("pyarrow.parquet"), load_package("pyarrow")
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=16):
                for number in range(batch.num_rows):  # Python objects of one row at a time
                    yield batch.slice(number, 1).to_pylist()[0]
    except lib.ArrowException:
        raise UserError(f"{str(path)!r} is not a parquet file, or it is damaged.") from None


READERS: dict[str, Callable[[Path], Iterator[Row | None]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": lambda path: separated_rows(path, ",\t;", PROBLEM),
    ".tsv": lambda path: separated_rows(path, "\t", PROBLEM),
    ".parquet": _parquet,
}
