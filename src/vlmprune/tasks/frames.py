"""A task about videos with another number of frames: `clips.jsonl@16frames`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmprune.core.errors import Option, UserError
from vlmprune.data.sample import Sample
from vlmprune.data.video import Clip
from vlmprune.tasks.derived import DerivedTask, about
from vlmprune.tasks.pictured import PICTURED
from vlmprune.tasks.task import Task

_NAME = re.compile(rf"(?P<task>.+)@(?P<frames>[1-9]\d*)frames(?P<how>{PICTURED})?")


@dataclass(frozen=True, kw_only=True)
class FramedTask(DerivedTask):
    """The questions of another task, with so many frames of each video, spread evenly.

    Attributes:
        frames: of each video, whatever its row says.
    """

    frames: int

    def shown(self, sample: Sample) -> dict[str, Any]:
        clip = sample.video
        return {"video": replace(clip, frames=self.frames, rate=None)} if isinstance(clip, Clip) else {}

    def misfit(self, sample: Sample) -> UserError:
        seen = "a picture" if sample.pictures else "nothing to see"
        return UserError(
            Option("frames", self.frames),
            f" is for tasks about videos, and {sample.id} of {self.of.name} is about {seen}: name others.",
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
    return FramedTask(**{**about(task), "name": framed_name(task.name, frames)}, of=task, frames=frames)
