"""The layouts that local copies of data sets have in common, and changes of rows that columns alone do not describe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmprune.data.cells import UnfitError
from vlmprune.data.columns import Columns
from vlmprune.data.rows import Row, read_rows
from vlmprune.data.source import Files

OPTIONS = ("A", "B", "C", "D", "E")
Adapt = Callable[[Row], Row]


def parquet(split: str, columns: Columns, config: str = "") -> tuple[Files, ...]:
    """Parquet files as the hub has them: in a folder of the configuration, in `data`, or loose."""
    folders = [f"{folder}/" for folder in (config, "data") if folder]
    return tuple(Files((f"{folder}{split}-*.parquet",), columns, telling=False) for folder in [*folders, ""])


def kit_tsv(name: str, columns: Columns) -> Files:
    """A TSV of VLMEvalKit, as its `$LMUData` has it."""
    return Files((f"{name}.tsv",), columns)


@dataclass(frozen=True)
class Joined(Files):
    """Two files, of questions and of their answers, whose rows belong together.

    Attributes:
        on: the column that both have.
    """

    on: str = "question_id"

    def rows(self, paths: list[Path]) -> Iterator[tuple[Row, Path]]:
        """Questions in order, with the columns of their answers."""
        questions, answers = paths
        known = {row.get(self.on): row for row in read_rows(answers)}
        for row, folder in super().rows([questions]):
            yield {**known.get(row.get(self.on), {}), **row}, folder


class _Known(dict[str, Any]):
    """A row of which a missing column is a problem of the sample."""

    def __missing__(self, column: str) -> Any:
        raise UnfitError(f"it has no column {column!r}")


def then(*steps: Adapt) -> Adapt:
    """Changes of a row, one after the other."""

    def changed(row: Row) -> Row:
        for step in steps:
            row = step(row)
        return row

    return changed


def set_from(column: str, value: Callable[[Row], Any]) -> Adapt:
    """A column computed from the others. A row from which it cannot be is a problem of the sample."""

    def changed(row: Row) -> Row:
        try:
            return {**row, column: value(_Known(row))}
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UnfitError(
                f"its columns do not give {column.strip('_')!r} ({type(error).__name__}: {error})"
            ) from None

    return changed


def without_nan(*columns: str) -> Adapt:
    """Columns in which pandas has written "nan" for nothing, empty there."""

    def changed(row: Row) -> Row:
        nothing = {name for name in columns if str(row.get(name)).lower() in ("nan", "none")}
        return {name: "" if name in nothing else cell for name, cell in row.items()}

    return changed


def lower(column: str) -> Adapt:
    """A column in small letters: "Yes" as "yes"."""
    return set_from(column, lambda row: row[column].strip().lower())
