"""A task about videos whose frames are shown as pictures: `clips.jsonl@pictures`, for models that take no videos."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image

from vlmprune.core.errors import UserError
from vlmprune.data.sample import Sample, Video
from vlmprune.data.video import Frames
from vlmprune.tasks.derived import DerivedTask, about
from vlmprune.tasks.task import Task

PICTURED = "@pictures"


@dataclass(frozen=True, eq=False)
class Film:
    """A video that is decoded once for all of its frames."""

    video: Video

    @cached_property
    def frames(self) -> Frames:
        return self.video.open()


@dataclass(frozen=True, eq=False)
class FramePicture:
    """A frame of a video as a picture.

    Attributes:
        film: of which it is a frame.
        number: among the frames that are shown, from 0.
    """

    film: Film
    number: int

    def open(self) -> Image.Image:
        return Image.fromarray(self.film.frames.pixels[self.number])

    def content(self) -> bytes:
        return self.film.video.digest() + str(self.number).encode()


@dataclass(frozen=True, kw_only=True)
class PicturedTask(DerivedTask):
    """The questions of another task, with the frames of its videos as pictures, in their order."""

    def shown(self, sample: Sample) -> dict[str, Any]:
        if sample.video is None:
            return {}
        film = Film(sample.video)
        pictures = tuple(FramePicture(film, number) for number in range(sample.video.count()))
        return {"video": None, "pictures": pictures}

    def misfit(self, sample: Sample) -> UserError:
        return UserError(
            f"{self.name} shows the frames of videos as pictures, and {sample.id} has no video: "
            f"name the task without {PICTURED}."
        )


def pictured(task: Task) -> PicturedTask:
    """A task about videos with their frames as pictures."""
    return PicturedTask(**{**about(task), "name": task.name + PICTURED}, of=task)
