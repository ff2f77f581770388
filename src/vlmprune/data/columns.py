"""From a row to a sample: which column holds what."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmprune.data.cells import (
    UnfitError,
    as_list,
    as_options,
    as_pictures,
    as_text,
    file_at,
    is_empty,
    letter_of,
)
from vlmprune.data.rows import FILE, LINE, PROBLEM, Row
from vlmprune.data.sample import Picture, Sample
from vlmprune.data.video import Clip, load_av

LONGEST = 100_000  # characters of a question, above which the row is taken for damaged


@dataclass(frozen=True)
class Columns:
    """Where a row keeps the parts of a sample. "" for a part that it does not have.

    Attributes:
        question, hint, category, kind: a column each.
        answers: a column with one answer or a list of them.
        pictures: a column, or several for several pictures. A cell holds a path, base64, a data: URL, bytes,
            `{"bytes", "path"}`, or a list of these; an empty one no picture.
        video: a column with the path of a video; a row has pictures or a video.
        options: a column with a list, or with an object by letter; or a column for each option, empty behind the last.
        id, group: a column, or several that are joined by "-".
        facts: columns that are kept for the task's scorer or metric, each as text, lists as JSON.
        letters: whether a right option becomes its letter. A row without options is then a problem, and else one
            with a free answer.
        named: how a row names its right option: "letter", "text" or "number" (from 0); "" to tell from the answer,
            where one that is the text of one option and the letter or number of another is a problem of the sample.
        adapt: changes the row first, where columns alone do not say it. It raises UnfitError for a row that is no
            sample.
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
    facts: tuple[str, ...] = ()
    letters: bool = True
    named: str = ""
    adapt: Callable[[Row], Row] | None = None

    def without_pictures(self) -> Columns:
        """The same without pictures and video, which need not be there then."""
        return replace(self, pictures=(), video="")

    def sample(self, task: str, row: Row, kind: str, folder: Path, clip: Clip | None = None) -> Sample:
        """The sample of a row; one that cannot be asked says why in `problem`.

        Args:
            task: name before the ids.
            kind: of the answer, where the row does not say.
            folder: that paths in the row are relative to.
            clip: how a video is sampled.

        Raises:
            UserError: PyAV is needed and not installed.
        """
        try:
            if PROBLEM in row:
                raise UnfitError(row[PROBLEM])
            row = self._adapted(row)
            return self._sample(task, row, kind, folder, clip)
        except UnfitError as reason:
            return Sample(self._name(task, row), "", kind, (), problem=str(reason))

    def _adapted(self, row: Row) -> Row:
        """The row as `adapt` leaves it; what it stumbles over is a problem of the row."""
        try:
            return self.adapt(row) if self.adapt else row
        except KeyError as missing:
            raise UnfitError(_missing(row, str(missing))) from None
        except (ValueError, TypeError, AttributeError) as error:
            raise UnfitError(f"its cells are not as expected: {error}") from None

    def _name(self, task: str, row: Row) -> str:
        return f"{task}/{_joined(row, self.id) or f'line-{row[LINE]}'}"

    def _sample(self, task: str, row: Row, kind: str, folder: Path, clip: Clip | None) -> Sample:
        name = self._name(task, row)
        question = _required(row, self.question)
        if len(question) > LONGEST:
            raise UnfitError(f"its question has {len(question):,} characters")
        kind = (as_text(row.get(self.kind)) if self.kind else "") or kind
        options = self._options(row)
        video = self._video(row, folder, clip)
        pictures = self._pictures(row, folder, name)
        if video and pictures:
            raise UnfitError("it has a picture and a video: give one of them")
        return Sample(
            id=name,
            question=question,
            kind=kind,
            answers=self._answers(row, options),
            pictures=pictures,
            video=video,
            options=options,
            group=f"{task}/{_joined(row, self.group)}" if self.group and _joined(row, self.group) else name,
            category=as_text(row.get(self.category)) if self.category else "",
            hint=as_text(row.get(self.hint)) if self.hint else "",
            facts={name: _fact(_cell(row, name)) for name in self.facts},
        )

    def _answers(self, row: Row, options: tuple[str, ...]) -> tuple[str, ...]:
        cell = _cell(row, self.answers)
        if options and self.letters:
            right = [cell] if not isinstance(cell, list | tuple) else cell
            answers = tuple(letter_of(one, options, self.named) for one in right if not is_empty(one))
        else:
            answers = as_list(cell)
        if not answers:
            raise UnfitError(f"it has no answer in the column {self.answers!r}")
        return answers

    def _options(self, row: Row) -> tuple[str, ...]:
        if isinstance(self.options, tuple):
            options = _in_columns(row, self.options)
        else:
            options = as_options(_cell(row, self.options)) if self.options else ()
        if not options and self.options and self.letters:
            raise UnfitError("it has no options to choose from")
        return options

    def _pictures(self, row: Row, folder: Path, name: str) -> tuple[Picture, ...]:
        columns = (self.pictures,) if isinstance(self.pictures, str) else self.pictures
        if not self.video and not any(column in row for column in columns if column) and any(columns):
            raise UnfitError(_missing(row, " or ".join(map(repr, columns))))
        return tuple(picture for column in columns if column for picture in as_pictures(row.get(column), folder, name))

    def _video(self, row: Row, folder: Path, clip: Clip | None) -> Clip | None:
        path = as_text(row.get(self.video)) if self.video else ""
        if not path:
            return None
        load_av()
        found = file_at(path, folder, "video")
        return Clip(found) if clip is None else Clip(found, clip.frames, clip.rate)


def _missing(row: Row, column: str) -> str:
    names = ", ".join(name for name in row if name not in (FILE, LINE)) or "none"
    return f"it has no column {column}: its columns are {names}"


def _cell(row: Row, column: str) -> Any:
    if column not in row:
        raise UnfitError(_missing(row, repr(column)))
    return row[column]


def _required(row: Row, column: str) -> str:
    text = as_text(_cell(row, column))
    if not text:
        raise UnfitError(f"its column {column!r} is empty")
    return text


def _in_columns(row: Row, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Options in columns of their own."""
    texts = [as_text(row.get(name)) for name in columns]
    options = tuple(text for text in texts if text)
    if texts[: len(options)] != list(options):
        raise UnfitError(f"its option {columns[texts.index('')]} is empty, and there are options behind it")
    return options


def _fact(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | dict) else as_text(value)


def _joined(row: Mapping[str, Any], columns: str | tuple[str, ...]) -> str:
    names = (columns,) if isinstance(columns, str) else columns
    return "-".join(as_text(row.get(name)) for name in names).strip("-")
