"""The layouts that local copies of data sets have in common, and helpers for rows that columns alone do not describe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmprune.data.columns import LETTERS, Columns
from vlmprune.data.rows import Row, read_rows
from vlmprune.data.source import Files

OPTIONS = ("A", "B", "C", "D", "E", "F")
Adapt = Callable[[Row], Row]


def parquet(split: str, columns: Columns, config: str = "") -> tuple[Files, ...]:
    """Parquet files as the hub has them: in a folder of the configuration, in `data`, or loose."""
    folders = [f"{folder}/" for folder in (config, "data") if folder]
    return tuple(Files((f"{folder}{split}-*.parquet",), columns) for folder in [*folders, ""])


@dataclass(frozen=True)
class Joined(Files):
    """Two files, of questions and of their answers, whose rows belong together.

    Attributes:
        on: the column that both have.
    """

    on: str = "question_id"

    def rows(self, paths: list[Path]) -> Iterator[tuple[Row, Path]]:
        questions, answers = paths
        known = {row.get(self.on): row for row in read_rows(answers)}
        for row, folder in super().rows([questions]):
            yield {**known.get(row.get(self.on), {}), **row}, folder


def kit_tsv(name: str, columns: Columns) -> Files:
    """A TSV of VLMEvalKit, as its `$LMUData` has it."""
    return Files((f"{name}.tsv",), columns)


def then(*steps: Adapt) -> Adapt:
    """Changes of a row, one after the other."""

    def changed(row: Row) -> Row:
        for step in steps:
            row = step(row)
        return row

    return changed


def set_from(column: str, value: Callable[[Row], Any]) -> Adapt:
    """A column computed from the others. Where one of them is missing, so is it."""

    def changed(row: Row) -> Row:
        try:
            return {**row, column: value(row)}
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            return {name: cell for name, cell in row.items() if name != column}

    return changed


def without_nan(*columns: str) -> Adapt:
    """Columns in which pandas has written "nan" for nothing, empty there."""

    def changed(row: Row) -> Row:
        return {name: "" if name in columns and str(cell).lower() in ("nan", "none") else cell for name, cell in row.items()}

    return changed


def lower(column: str) -> Adapt:
    """A column in small letters: "Yes" as "yes"."""
    return set_from(column, lambda row: row[column].strip().lower())


def letter_of_number(answer: str) -> Adapt:
    """An answer that is an option's number from 0 as its letter."""
    return set_from(answer, lambda row: LETTERS[_index(row[answer])])


def letter_of_text(answer: str, options: str) -> Adapt:
    """An answer that is an option's text as its letter."""
    return set_from(answer, lambda row: LETTERS[list(row[options]).index(row[answer])])


def _index(number: Any) -> int:
    if (index := int(number)) < 0:
        raise ValueError(number)
    return index
