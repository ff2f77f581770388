"""A task about videos with another number of frames: `clips.jsonl@16frames`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from vlmprune.core.errors import Option, UserError
from vlmprune.data.sample import Sample
from vlmprune.data.video import Clip
from vlmprune.tasks.pictured import PICTURED
from vlmprune.tasks.task import Place, Task

_NAME = re.compile(rf"(?P<task>.+)@(?P<frames>[1-9]\d*)frames(?P<how>{PICTURED})?")


@dataclass(frozen=True, kw_only=True)
class FramedTask(Task):
    """The questions of another task, with so many frames of each video, spread evenly.

    Attributes:
        of: the other task.
        frames: of each video, whatever its row says.
    """

    of: Task
    frames: int

    @property
    def source(self) -> str:
        return self.of.source

    def samples(self, place: Place = Place()) -> Iterator[Sample]:  # noqa: B008 (frozen)
        """As `Task.samples`.

        Raises:
            UserError: a question has no video.
        """
        for sample in self.of.samples(place):
            if isinstance(sample.video, Clip):
                yield replace(sample, video=replace(sample.video, frames=self.frames, rate=None))
            elif sample.problem or not place.pictures:
                yield sample
            else:
                about = "a picture" if sample.pictures else "nothing to see"
                raise UserError(
                    Option("frames", self.frames),
                    f" is for tasks about videos, and {sample.id} of {self.of.name} is about {about}: name others.",
                )


def framed_name(task: str, frames: int) -> str:
    """The name of a task with so many frames."""
    how = PICTURED if task.endswith(PICTURED) else ""
    return f"{task.removesuffix(PICTURED)}@{frames}frames{how}"


def read_framed(name: str) -> tuple[str, int] | None:
    """The task that a name means, and the number of frames; None where it says none."""
    match = _NAME.fullmatch(name)
    return None if match is None else (match["task"] + (match["how"] or ""), int(match["frames"]))


def with_frames(tasks: Sequence[str], frames: Sequence[int]) -> tuple[str, ...]:
    """The names of all tasks with each number of frames.

    Raises:
        UserError: a number is not above 0.
    """
    if any(number < 1 for number in frames):
        raise UserError(Option("frames"), " needs whole numbers from 1, separated by commas.")
    return tuple(framed_name(task, number) for task in tasks for number in dict.fromkeys(frames))


def framed(task: Task, frames: int) -> FramedTask:
    """A task with another number of frames of each video.

    Raises:
        UserError: its questions are made up.
    """
    if task.endless:
        raise UserError(
            Option("frames", frames),
            f" is for videos in files, and {task.name} makes up its questions with pictures or frames of their own.",
        )
    about = {field.name: getattr(task, field.name) for field in fields(Task)}
    return FramedTask(**{**about, "name": framed_name(task.name, frames)}, of=task, frames=frames)
