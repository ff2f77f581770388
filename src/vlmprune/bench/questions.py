"""Which questions of a task a run asks: chosen in a first pass over the data, read one at a time in later ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import islice
from typing import TypeVar

from vlmprune.core.errors import UserError
from vlmprune.data.sample import Sample
from vlmprune.tasks.task import Place, Task

T = TypeVar("T")


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Successive lists of `size` items, the last of what is left."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


class Questions:
    """The first questions of a task, in the order of its data. Nothing but their ids is kept.

    Args:
        task: whose.
        place: where its samples come from.
        limit: how many that can be asked; None for all. A group of questions that are scored as one is not cut: it is
            in where all of it fits, and the first is always in.

    Attributes:
        ids: of the questions, those that cannot be asked included.
        digest: hash of everything that a model is shown and scored by.

    Raises:
        UserError: the data is not there, or it has no question that can be asked.
    """

    def __init__(self, task: Task, place: Place, limit: int | None) -> None:
        self.task, self.place = task, place
        if limit is None and task.endless:
            raise ValueError(f"{task.name} has no end: give a limit.")
        self.ids: list[str] = []
        state, asked = sha256(), 0
        self._groups = self._whole_groups(limit) if task.grouped and limit is not None else None
        for sample in self._chosen():
            if limit is not None and self._groups is None and asked == limit:
                break
            asked += not sample.problem
            self.ids.append(sample.id)
            state.update(sample.digest())
        self.digest = state.hexdigest()[:16]
        if not asked:
            raise UserError(f"No question of {task.name} can be asked{self._why()}.")

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Sample]:
        return islice(self._chosen(), len(self.ids))

    def batches(self, size: int) -> Iterator[list[Sample]]:
        """The samples in batches that start at multiples of `size`."""
        return in_batches(self, size)

    def _chosen(self) -> Iterator[Sample]:
        samples = self.task.samples(self.place)
        if self._groups is None:
            return samples
        return (sample for sample in self._until_groups_end(samples) if sample.group in self._groups)

    def _until_groups_end(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """All samples, or of an endless stream those up to the first group that was not chosen."""
        for sample in samples:
            if self.task.endless and sample.group not in (self._groups or ()):
                return
            yield sample

    def _whole_groups(self, limit: int) -> set[str]:
        """The groups, in order of their first question, that together have at most `limit` questions."""
        sizes: dict[str, int] = {}
        for sample in self.task.samples(self.place):
            if self.task.endless and sample.group not in sizes and sum(sizes.values()) > limit:
                break
            sizes[sample.group] = sizes.get(sample.group, 0) + (not sample.problem)
        chosen: set[str] = set()
        total = 0
        for group, size in sizes.items():
            if chosen and total + size > limit:
                break
            chosen.add(group)
            total += size
        return chosen

    def _why(self) -> str:
        first = next(iter(self), None)
        if first is None:
            return ": the data has no rows"
        source = f"; the data is to be had from {self.task.source}" if self.task.source else ""
        return f": {first.problem} ({first.id}){source}"
