"""Tasks whose questions come from a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vlmprune.core.errors import UserError
from vlmprune.data.hub import hub_rows
from vlmprune.data.rows import Row
from vlmprune.data.sample import Clip, Sample
from vlmprune.data.source import Columns, Files, Hub, find_files
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
        seen: dict[str, int] = {}
        for row, folder, columns in self._rows(place):
            if self.only is not None and not self.only(row):
                continue
            sample = columns.sample(self.name, row, self.kind, folder, self.clip)
            times = seen[sample.id] = seen.get(sample.id, 0) + 1
            if times > 1:
                problem = sample.problem or f"its id {sample.id!r} stands in the data before"
                sample = replace(sample, id=f"{sample.id}#{times}", problem=problem)
            yield sample

    def _rows(self, place: Place) -> Iterator[tuple[Row, Path, Columns]]:
        if place.data is not None and (found := find_files(self.files, self.folder or self.name, place.data)):
            layout, paths = found
            for row, folder in layout.rows(paths):
                yield row, folder, layout.columns
        elif place.data is None and self.hub is not None:
            for row in hub_rows(self.hub):
                yield row, Path(), self.hub.columns
        else:
            raise UserError(self._missing(place))

    def _missing(self, place: Place) -> str:
        names = " or ".join(" and ".join(layout.names) for layout in self.files)
        looked = "it is not on the hub"
        if place.data is not None:
            looked = f"{str(place.data)!r} has no {names}, and no folder {self.folder or self.name!r} with it"
        return f"The data of {self.name} is missing: {looked}. Get it from {self.where} ({self.size})."
