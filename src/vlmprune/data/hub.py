"""Rows of a data set on the Hugging Face hub, as they stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vlmprune.core.errors import Option, UserError, sentence_of
from vlmprune.core.extras import load_package
from vlmprune.data.rows import FILE, LINE, Row

SPLITS = ("test", "validation", "val")  # asked in this order where none is named


@dataclass(frozen=True)
class RemoteFile:
    """A file that a row names and the hub has.

    Attributes:
        url: as fsspec opens it.
    """

    url: str

    def read(self) -> bytes:
        fsspec = load_package("fsspec")
        try:
            with fsspec.open(self.url, "rb") as file:
                return file.read()
        except Exception as error:  # of any HTTP client
            raise ValueError(_reason(error)) from None


def hub_rows(name: str, config: str | None = None, split: str | None = None) -> Iterator[Row]:
    """Rows of a data set with their pictures still encoded.

    Args:
        name: owner/name.
        config, split: as `datasets.load_dataset` takes them. None for the only config, and for a test or validation
            split.

    Raises:
        UserError: the data set cannot be opened or read, or has no such split.
    """
    datasets: Any = load_package("datasets")

    def said(error: Exception) -> UserError:
        whole = ":".join(part for part in (name, config, split) if part)
        advice = "where the hub cannot be reached, give a local copy."
        return UserError(f"The data set {whole!r} cannot be read from the Hugging Face hub: {_reason(error)}; {advice}")

    try:
        found = datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # of the hub's HTTP client and of readers, which are not ours to know
        raise said(error) from error
    rows = found if split else found[_split_of(name, list(found))]
    named = _names(datasets, rows)
    stream = iter(rows.decode(False))
    number = 0
    while True:
        try:
            row = next(stream)
        except StopIteration:
            return
        except Exception as error:
            raise said(error) from error
        number += 1
        cells = {column: _remote(named[column](cell) if column in named else cell) for column, cell in row.items()}
        yield {FILE: name, LINE: number, **cells}


def _split_of(name: str, splits: list[str]) -> str:
    if len(splits) == 1:
        return splits[0]
    for split in SPLITS:
        if split in splits:
            return split
    asked = Option("tasks", f"{name}::{splits[0]}")
    raise UserError(f"The data set {name!r} has the splits {', '.join(splits)}: name one, as in ", asked, ".")


def _names(datasets: Any, rows: Any) -> dict[str, Callable[[Any], Any]]:
    """For columns that number their classes, what turns a number into the class's name."""

    def name_by(feature: Any) -> Callable[[Any], Any]:
        return lambda number: None if number is None else feature.int2str(number)

    features = rows.features or {}
    return {name: name_by(one) for name, one in features.items() if isinstance(one, datasets.ClassLabel)}


def _remote(cell: Any) -> Any:
    """A cell whose pictures, where they are files of the hub, are read when they are needed."""
    if isinstance(cell, list):
        return [_remote(one) for one in cell]
    if isinstance(cell, dict) and "path" in cell and not cell.get("bytes") and "://" in str(cell["path"]):
        return RemoteFile(cell["path"])
    return cell


def _reason(error: Exception) -> str:
    """The first sentence of an error, or its kind."""
    return sentence_of(error) or type(error).__name__
