"""From a row to a sample: which column holds what."""

from __future__ import annotations

import ast
import base64
import binascii
import contextlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmprune.data.rows import LINE, Row
from vlmprune.data.sample import BytesPicture, Clip, FilePicture, Picture, Sample

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LONGEST = 100_000  # characters of a question, above which the row is taken for damaged
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]{64,}")


@dataclass(frozen=True)
class Columns:
    """Where a row keeps the parts of a sample. "" for a part that it does not have.

    Attributes:
        question, hint, category, kind, video: a column each.
        answers: a column with one answer or a list of them.
        pictures: a column, or several for several pictures. A cell holds a path, base64, bytes, `{"bytes", "path"}`,
            or a list of these.
        options: a column with a list, or a column for each option; empty ones are left out.
        id, group: a column, or several that are joined by "-".
        letters: whether a right option becomes its letter, whether the row names it by letter, by text or by number.
        adapt: changes the row first, where columns alone do not say it.
    """

    question: str = "question"
    answers: str = "answer"
    pictures: str | tuple[str, ...] = "image"
    id: str | tuple[str, ...] = "id"
    video: str = ""
    options: str | tuple[str, ...] = ""
    category: str = ""
    group: str | tuple[str, ...] = ""
    hint: str = ""
    kind: str = ""
    letters: bool = True
    adapt: Callable[[Row], Row] | None = None

    def sample(self, task: str, row: Row, kind: str, folder: Path, clip: Clip | None = None) -> Sample:
        """The sample of a row; one that cannot be asked says why in `problem`.

        Args:
            task: name before the ids.
            kind: of the answer, where the row does not say.
            folder: that paths in the row are relative to.
            clip: how a video is sampled.
        """
        number = row[LINE]
        try:
            row = self.adapt(row) if self.adapt else row
            return self._sample(task, row, kind, folder, clip)
        except _Unfit as reason:
            name = _joined(row, self.id) or f"line {number}"
            return Sample(f"{task}/{name}", "", kind, (), problem=str(reason))

    def _sample(self, task: str, row: Row, kind: str, folder: Path, clip: Clip | None) -> Sample:
        question = _text(row, self.question)
        if len(question) > LONGEST:
            raise _Unfit(f"its question has {len(question):,} characters")
        kind = str(row.get(self.kind) or kind) if self.kind else kind
        options = self._options(row)
        answers = _list(_cell(row, self.answers))
        if options and self.letters:
            answers = tuple(_letter(answer, options) for answer in answers)
        if not answers:
            raise _Unfit(f"it has no answer in the column {self.answers!r}")
        name = f"{task}/{_joined(row, self.id) or row[LINE]}"
        return Sample(
            id=name,
            question=question,
            kind=kind,
            answers=answers,
            pictures=() if self.video else self._pictures(row, folder, name),
            video=self._video(row, folder, clip),
            options=options,
            group=f"{task}/{_joined(row, self.group)}" if self.group else name,
            category=str(row.get(self.category) or "") if self.category else "",
            hint=_known(row.get(self.hint)) if self.hint else "",
        )

    def _options(self, row: Row) -> tuple[str, ...]:
        if not self.options:
            return ()
        if isinstance(self.options, tuple):
            return tuple(text for name in self.options if (text := _known(row.get(name))))
        if self.options not in row:
            raise _Unfit(f"it has no column {self.options!r}")
        return _list(row[self.options])

    def _pictures(self, row: Row, folder: Path, name: str) -> tuple[Picture, ...]:
        columns = (self.pictures,) if isinstance(self.pictures, str) else self.pictures
        found = [picture for column in columns if column for picture in _pictures(row.get(column), folder, name)]
        if any(isinstance(one, FilePicture) and not one.path.is_file() for one in found):
            missing = next(one.path for one in found if isinstance(one, FilePicture) and not one.path.is_file())
            raise _Unfit(f"there is no picture {str(missing)!r}")
        return tuple(found)

    def _video(self, row: Row, folder: Path, clip: Clip | None) -> Clip | None:
        if not self.video:
            return None
        path = folder / _text(row, self.video)
        if not path.is_file():
            raise _Unfit(f"there is no video {str(path)!r}")
        return Clip(path) if clip is None else Clip(path, clip.frames, clip.rate)


class _Unfit(Exception):
    """Why a row is no sample, in words."""


def _cell(row: Row, column: str) -> Any:
    if column not in row:
        raise _Unfit(f"it has no column {column!r}" if len(row) > 2 else "the line cannot be read")
    return row[column]


def _text(row: Row, column: str) -> str:
    text = _known(_cell(row, column))
    if not text:
        raise _Unfit(f"its column {column!r} is empty")
    return text


def _known(value: Any) -> str:
    """A cell as text; "" for none, and for what pandas writes for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _joined(row: Mapping[str, Any], columns: str | tuple[str, ...]) -> str:
    names = (columns,) if isinstance(columns, str) else columns
    return "-".join(_known(row.get(name)) for name in names).strip("-")


def _list(value: Any) -> tuple[str, ...]:
    """A cell as texts: a list, a list written as text ("['a', 'b']"), or one value."""
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value.strip())
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(text for one in value if (text := _known(one)))
    text = _known(value)
    return (text,) if text else ()


def _letter(answer: str, options: Sequence[str]) -> str:
    """An option's letter from its letter, its text, or its number from 0."""
    letters = LETTERS[: len(options)]
    if answer in options:
        return letters[options.index(answer)]
    if answer.strip("().").upper() in tuple(letters):
        return answer.strip("().").upper()
    if answer.isdigit() and int(answer) < len(options):
        return letters[int(answer)]
    raise _Unfit(f"its answer {answer!r} is none of its options")


def _pictures(value: Any, folder: Path, name: str) -> list[Picture]:
    """The pictures of a cell."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, Mapping):
        if value.get("bytes"):
            return [_bytes(value["bytes"], name)]
        return _pictures(value.get("path"), folder, name)
    if isinstance(value, bytes):
        return [_bytes(value, name)]
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = list(_list(value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [picture for one in value for picture in _pictures(one, folder, name)]
    text = str(value)
    if _BASE64.fullmatch(text):
        try:
            return [_bytes(base64.b64decode(text, validate=False), name)]
        except binascii.Error:
            raise _Unfit("its picture is not base64") from None
    return [FilePicture(folder / text)]


def _bytes(data: bytes, name: str) -> BytesPicture:
    return BytesPicture(lambda: data, name)
