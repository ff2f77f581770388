"""The columns of a user's own data, and the other names that they may have."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmprune.data.cells import LETTERS, UnfitError, as_text, is_empty
from vlmprune.data.columns import Columns
from vlmprune.data.rows import FILE, LINE, Row
from vlmprune.data.video import ENDINGS

# The names of each part; where a row has several, the first that is not empty counts.
NAMES: dict[str, tuple[str, ...]] = {
    "question": ("question", "text"),
    "answer": ("answer", "answers", "label"),
    "image": ("image", "images", "image_path"),
    "video": ("video",),
    "options": ("options", "choices"),
    "category": ("category",),
    "group": ("group",),
    "hint": ("hint", "context"),
    "metric": ("metric",),
    "id": ("id", "index", "question_id"),
    "frames": ("frames",),
    "fps": ("fps",),
}
FILE_NAME = "file_name"  # of a picture or a video, as in folders that the library datasets reads
_KNOWN = [*(name for names in NAMES.values() for name in names), FILE_NAME]
_CLOSE = 0.85  # how alike a name must be to one that is known to be taken for a slip

_OPEN = Columns(video="video", category="category", group="group", hint="hint", kind="metric")
_CHOICE = Columns(options="options", video="video", category="category", group="group", hint="hint", kind="metric")


def own_columns(row: Row) -> Columns:
    """The columns of a row that has them under their first names (`standard_row`)."""
    return _CHOICE if "options" in row else _OPEN


def standard_row(row: Row) -> Row:
    """A row with its parts under their first names, and nothing else.

    Raises:
        UnfitError: a column is missing, or its name is a slip.
    """
    found: Row = {FILE: row[FILE], LINE: row[LINE]}
    for part, names in NAMES.items():
        there = [name for name in names if name in row]
        if there:
            found[part] = next((row[name] for name in there if not is_empty(row[name])), None)
    if not is_empty(path := row.get(FILE_NAME)):
        found.setdefault("video" if Path(str(path)).suffix.lower() in ENDINGS else "image", path)
    if letters := _letter_columns(row):
        found.setdefault("options", _letter_options(row, letters))
    if is_empty(found.get("options")):
        found.pop("options", None)
    _check(row, found)
    return found


def _letter_columns(row: Row) -> list[str]:
    """The columns A, B, C, ... for the options; A alone is something else."""
    there = [letter for letter in LETTERS if letter in row]
    return there if there[:2] == ["A", "B"] else []


def _letter_options(row: Row, letters: Sequence[str]) -> list[Any] | None:
    cells = [row[letter] for letter in letters]
    while cells and not as_text(cells[-1]):
        cells.pop()
    return cells or None


def _check(row: Row, found: Row) -> None:
    names = [name for name in row if name not in (FILE, LINE)]
    for name in names:
        if name not in _KNOWN and (known := _slip(name)) and known not in row:
            raise UnfitError(f"its column {name!r} is not known: is it {known!r}?")
    wanted = {"question": ("question",), "answer": ("answer",), "image or video": ("image", "video")}
    missing = [words for words, parts in wanted.items() if not any(part in found for part in parts)]
    if missing:
        raise UnfitError(
            f"it has no column for {' nor '.join(missing)}: its columns are {', '.join(names) or 'none'}, and "
            "expected are question, answer, and image or video (docs/own-data.md)"
        )


def _slip(name: str) -> str:
    """The known name that a name was meant to be; "" where it is another's."""
    if name.lower() in _KNOWN:
        return name.lower()
    return next(iter(difflib.get_close_matches(name.lower(), _KNOWN, n=1, cutoff=_CLOSE)), "")
