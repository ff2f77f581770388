"""One question about pictures or a video, whatever data set it comes from."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from PIL import Image, UnidentifiedImageError

from vlmprune.core.errors import UserError
from vlmprune.data.video import Frames


class Picture(Protocol):
    """A picture that is opened when it is needed."""

    def open(self) -> Image.Image:
        """The picture, RGB.

        Raises:
            UserError: it cannot be read.
        """
        ...

    def content(self) -> bytes:
        """What tells this picture from another; empty where it cannot be read."""
        ...


class Video(Protocol):
    """A video whose frames are decoded when they are needed."""

    def open(self) -> Frames:
        """The frames that are shown.

        Raises:
            UserError: it cannot be read.
        """
        ...

    def count(self) -> int:
        """How many frames are shown, without decoding them where that is known."""
        ...

    def digest(self) -> bytes:
        """What tells these frames from others."""
        ...


@dataclass(frozen=True)
class FilePicture:
    """A picture file."""

    path: Path

    def open(self) -> Image.Image:
        try:
            return _decode(self.path.read_bytes())
        except OSError as error:
            raise UserError(f"The picture {str(self.path)!r} cannot be read: {error.strerror or error}.") from None
        except ValueError as error:
            raise UserError(f"The picture {str(self.path)!r} cannot be read: {error}.") from None

    def content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError:
            return b""


@dataclass(frozen=True)
class BytesPicture:
    """A picture that stands in its row: the bytes of a picture file.

    Attributes:
        get: returns the bytes. Called each time, so that a row can be read again rather than kept.
        where: names the picture in an error.
    """

    get: Callable[[], bytes]
    where: str

    def open(self) -> Image.Image:
        try:
            return _decode(self.get())
        except (OSError, ValueError) as error:
            raise UserError(f"The picture of {self.where} cannot be read: {error}.") from None

    def content(self) -> bytes:
        try:
            return self.get()
        except (OSError, ValueError):
            return b""


def _decode(data: bytes) -> Image.Image:
    """A decoded picture, or ValueError with the reason."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return opened.convert("RGB")
    except UnidentifiedImageError:
        raise ValueError("no picture format that Pillow knows") from None
    except (OSError, SyntaxError, Image.DecompressionBombError, ValueError) as error:
        raise ValueError(str(error).rstrip(".") or type(error).__name__) from None


@dataclass(frozen=True, eq=False)
class Sample:
    """One question.

    Attributes:
        id: unique in the task, "pope/random-12".
        question: as the data has it. `<image1>`, `<image2>`, ... mark where pictures stand; without marks they come
            before the text.
        kind: what is looked for in the reply (`scoring.replies.SCORERS`).
        answers: the right answers. For "choice" the marker of the right option, "(b)".
        pictures: in order; none where a video is asked about, or for a question without a picture.
        video: or None.
        options: texts of the options of a multiple-choice question.
        group: the unit of statistics: questions that were not drawn independently share it.
        category: type of the question.
        hint: what is given beside the question: ScienceQA's context, MMBench's hint.
        problem: why it cannot be asked, in words; empty for all others. It is reported and counted, and never scored.
        facts: what else its scorer or metric reads, by name ("precision", "figure"), from columns that the task names.
    """

    id: str
    question: str
    kind: str
    answers: tuple[str, ...]
    pictures: tuple[Picture, ...] = ()
    video: Video | None = None
    options: tuple[str, ...] = ()
    group: str = ""
    category: str = ""
    hint: str = ""
    problem: str = ""
    facts: dict[str, str] = field(default_factory=dict)

    @cached_property
    def images(self) -> tuple[Image.Image, ...]:
        """The pictures, decoded.

        Raises:
            UserError: one cannot be read.
        """
        return tuple(picture.open() for picture in self.pictures)

    @cached_property
    def frames(self) -> Frames | None:
        """The chosen frames of the video, decoded; None without a video.

        Raises:
            UserError: it cannot be read.
        """
        return None if self.video is None else self.video.open()

    def digest(self) -> bytes:
        """Hash of everything that a model is shown and scored by."""
        state = sha256()
        texts = (self.id, self.question, self.kind, *self.options, *self.answers, self.group, self.category, self.hint)
        facts = (text for fact in sorted(self.facts.items()) for text in fact)
        for text in (*texts, self.problem, *facts):
            state.update(f"{len(text)}:{text}".encode())
        for picture in self.pictures:
            state.update(sha256(picture.content()).digest())
        if self.video is not None:
            state.update(self.video.digest())
        return state.digest()
