"""A task about videos whose frames are shown as pictures: `clips.jsonl@pictures`, for models that take no videos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache

from PIL import Image

from vlmprune.core.errors import UserError
from vlmprune.data.sample import Sample, Video
from vlmprune.data.video import Frames
from vlmprune.tasks.task import Place, Task

PICTURED = "@pictures"


@dataclass(frozen=True)
class FramePicture:
    """A frame of a video as a picture.

    Attributes:
        video: of which it is a frame.
        number: among the frames that are shown, from 0.
    """

    video: Video
    number: int

    def open(self) -> Image.Image:
        return Image.fromarray(_opened(self.video).pixels[self.number])

    def content(self) -> bytes:
        return self.video.digest() + str(self.number).encode()


@dataclass(frozen=True, kw_only=True)
class PicturedTask(Task):
    """The questions of another task, with the frames of its videos as pictures, in their order.

    Attributes:
        of: the other task.
    """

    of: Task

    @property
    def endless(self) -> bool:
        return self.of.endless

    @property
    def source(self) -> str:
        return self.of.source

    def samples(self, place: Place = Place()) -> Iterator[Sample]:  # noqa: B008 (frozen)
        """As `Task.samples`.

        Raises:
            UserError: a question has no video.
        """
        for sample in self.of.samples(place):
            if sample.video is not None:
                yield replace(sample, video=None, pictures=_pictures(sample.video))
            elif sample.problem or not place.pictures:
                yield sample
            else:
                raise UserError(
                    f"{self.name} shows the frames of videos as pictures, and {sample.id} has no video: "
                    f"name the task without {PICTURED}."
                )


def pictured(task: Task) -> PicturedTask:
    """A task about videos with their frames as pictures."""
    about = {field.name: getattr(task, field.name) for field in fields(Task)}
    return PicturedTask(**{**about, "name": task.name + PICTURED}, of=task)


def _pictures(video: Video) -> tuple[FramePicture, ...]:
    """All that are shown of a video; of one that cannot be read the first, which says so when it is opened."""
    try:
        count = len(_opened(video).indices)
    except UserError:
        count = 1
    return tuple(FramePicture(video, number) for number in range(count))


@lru_cache(maxsize=2)
def _opened(video: Video) -> Frames:
    return video.open()
