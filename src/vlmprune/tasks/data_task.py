"""Tasks whose questions come from a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vlmprune.core.errors import Option, UserError
from vlmprune.data.columns import Columns
from vlmprune.data.rows import PROBLEM, Row
from vlmprune.data.sample import Sample
from vlmprune.data.source import Files, Hub, find_files
from vlmprune.data.video import Clip
from vlmprune.tasks.task import Place, Task


@dataclass(frozen=True, kw_only=True)
class DataTask(Task):
    """A data set.

    Attributes:
        kind: of the answers.
        files: layouts of local copies, the first that is there is taken.
        hub: where it is on the hub, or None.
        where: where local copies are to be had, for people: an address or a repository.
        size: how large it is, for people: "1,000 questions, 90 MB".
        clip: how videos are sampled.
        folder: of local copies below `--data`, where it has not the task's name.
        only: which rows of the data belong to the task; None for all.
    """

    kind: str
    files: tuple[Files, ...] = ()
    hub: Hub | None = None
    where: str = ""
    size: str = ""
    clip: Clip | None = None
    folder: str = ""
    only: Callable[[Row], bool] | None = None

    def samples(self, place: Place = Place()) -> Iterator[Sample]:  # noqa: B008 (frozen)
        seen: set[str] = set()
        for row, folder, columns in self.rows(place):
            if self.only is not None and PROBLEM not in row and not self.only(row):
                continue
            sample = self.sample(row, folder, columns if place.pictures else columns.without_pictures())
            if sample.id in seen:
                problem = sample.problem or f"its id {sample.id!r} stands in the data before"
                sample = replace(sample, id=_unused(sample.id, seen), problem=problem)
            seen.add(sample.id)
            yield sample

    def sample(self, row: Row, folder: Path, columns: Columns) -> Sample:
        """The sample of a row; `folder` is what paths in it are relative to."""
        return columns.sample(self.name, row, self.kind, folder, self.clip)

    def rows(self, place: Place) -> Iterator[tuple[Row, Path, Columns]]:
        """Rows, each with the folder that its paths are relative to, and its columns."""
        if place.data is not None:
            found = find_files(self.files, self.folder or self.name, place.data)
            if found is None:
                raise UserError(*self._missing(place.data))
            layout, paths = found
            for row, folder in layout.rows(paths):
                yield row, folder, layout.columns
        elif self.hub is not None:
            for row in self.hub.rows():
                yield row, Path(), self.hub.columns
        else:
            is_not = f"The data of {self.name} is not on the Hugging Face hub: "
            raise UserError(is_not, *self._get(), Option("data"), ".")

    @property
    def source(self) -> str:
        return f"{self.where} ({self.size})" if self.size else self.where

    def _missing(self, data: Path) -> list[str | Option]:
        telling, others = ([one for one in self.files if one.telling is tells] for tells in (True, False))
        here = f"has no {_names(telling)}, and " if telling else "has "
        there = " or ".join(["it"] * bool(telling) + [_names(others)] * bool(others))
        looked = f"{str(data)!r} {here}no folder {self.folder or self.name!r} with {there}"
        return [f"The data of {self.name} is missing: {looked}. ", *self._get(upper=True), Option("data"), "."]

    def _get(self, upper: bool = False) -> list[str]:
        verb = "Get" if upper else "get"
        return [f"{verb} it from {self.source or 'its authors'} and name the folder that it lies in by "]


def _names(layouts: list[Files]) -> str:
    return " or ".join(" and ".join(map(repr, layout.names)) for layout in layouts)


def _unused(name: str, seen: set[str]) -> str:
    """An id for a sample whose own is taken."""
    number = 2
    while f"{name}#{number}" in seen:
        number += 1
    return f"{name}#{number}"
