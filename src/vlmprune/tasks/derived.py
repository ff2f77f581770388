"""A task that asks the questions of another task about videos, and shows the videos in another way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from vlmprune.core.errors import UserError
from vlmprune.data.sample import Sample
from vlmprune.tasks.task import Place, Task


@dataclass(frozen=True, kw_only=True)
class DerivedTask(Task):
    """The questions of another task.

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
            changed = self.shown(sample)
            if changed:
                yield replace(sample, **changed)
            elif sample.problem or not place.pictures:
                yield sample
            else:
                raise self.misfit(sample)

    @abstractmethod
    def shown(self, sample: Sample) -> dict[str, Any]:
        """The fields of a sample in which its video is shown in this way; none where it has no such video."""
        ...

    @abstractmethod
    def misfit(self, sample: Sample) -> UserError:
        """What to say of a question without such a video."""
        ...


def about(task: Task) -> dict[str, Any]:
    """The fields that a task made of another one takes over."""
    return {field.name: getattr(task, field.name) for field in fields(Task)}
