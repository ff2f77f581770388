"""The questions of a search: a user's pictures, and what is asked about each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from PIL import Image

from vlmprune.ask.media import open_image, pictures_of
from vlmprune.core.errors import Option, UserError
from vlmprune.data.rows import LINE, PROBLEM, READERS, Row, read_rows
from vlmprune.data.sample import Sample
from vlmprune.scoring.metrics import ACCURACY
from vlmprune.tasks.task import Place, Task

DESCRIBE = "Describe the picture."
LINES = ".txt"  # a question a line, each for every picture


@dataclass(frozen=True)
class UsersPicture:
    """A picture file, upright and without transparency, as `vlmprune run` shows it to a model."""

    path: Path

    def open(self) -> Image.Image:
        return open_image(self.path)

    def content(self) -> bytes:
        return self.path.read_bytes()


@dataclass(frozen=True, kw_only=True)
class TuneTask(Task):
    """Questions whose right answers nobody needs to know: what counts is what the unpruned model says."""

    asked: tuple[Sample, ...] = ()

    def samples(self, place: Place = Place()) -> Iterator[Sample]:  # noqa: B008 (frozen)
        return iter(self.asked)


def questions_of(images: Path, questions: Path | None, limit: int, seed: int = 0) -> TuneTask:
    """Questions about the pictures of a folder, in a shuffled order, so that the first ones stand for all.

    Args:
        images: the folder.
        questions: a .txt file with a question a line, each of which is asked about every picture; or a data file whose
            rows have a question and may name an image of the folder. None asks for a description.
        limit: how many are asked at most.
        seed: of the order.

    Raises:
        UserError: there are no pictures or questions, or one that is asked cannot be read.
    """
    if limit < 1:
        raise UserError(Option("limit", limit), " must be at least 1.")
    pictures = pictures_of(images)
    pairs = list(product(pictures, [DESCRIBE])) if questions is None else _pairs(pictures, images, questions)
    random.Random(seed).shuffle(pairs)
    chosen = pairs[:limit]
    for picture in {picture: None for picture, _ in chosen}:
        open_image(picture)  # a broken one has to be told now, not in an hour
    asked = tuple(
        Sample(f"{number}: {picture.name}", question, "exact", ("",), (UsersPicture(picture),))
        for number, (picture, question) in enumerate(chosen)
    )
    return TuneTask(name="tune", dimension="", summary="a user's pictures", metric=ACCURACY, chance=0.0, asked=asked)


def _pairs(pictures: list[Path], folder: Path, file: Path) -> list[tuple[Path, str]]:
    """Each picture with each question that is asked about it."""
    if not file.is_file():
        raise UserError(f"There is no file of questions {str(file)!r}.")
    if file.suffix.lower() not in (LINES, *READERS):
        endings = ", ".join((LINES, *READERS))
        raise UserError(f"The file of questions {str(file)!r} must end in {endings}.")
    if file.suffix.lower() == LINES:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{str(file)!r} cannot be read: it is not text in UTF-8.") from None
        pairs = list(product(pictures, [line.strip() for line in lines if line.strip()]))
    else:
        pairs = [pair for row in read_rows(file) for pair in _of_row(row, pictures, folder, file)]
    if not pairs:
        raise UserError(f"There are no questions in {str(file)!r}.")
    return list(dict.fromkeys(pairs))


def _of_row(row: Row, pictures: list[Path], folder: Path, file: Path) -> list[tuple[Path, str]]:
    where = f"Row {row[LINE]} of {str(file)!r}"
    if PROBLEM in row:
        raise UserError(f"{where} cannot be read: {row[PROBLEM]}.")
    question = str(row.get("question") or "").strip()
    if not question:
        raise UserError(f"{where} has no question: put it into a column `question`.")
    if not (name := str(row.get("image") or "").strip()):
        return [(picture, question) for picture in pictures]
    picture = folder / name
    if not picture.is_file():
        raise UserError(f"{where} asks about {name!r}, and there is no such picture in {str(folder)!r}.")
    return [(picture, question)]
