"""A task made of the user's own data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlmprune.core.errors import UserError
from vlmprune.data.columns import Columns
from vlmprune.data.rows import READERS
from vlmprune.data.source import Files
from vlmprune.scoring.metrics import ACCURACY
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.task import Place


def looks_like_data(name: str) -> bool:
    """Whether a name means a file or folder rather than a task."""
    return Path(name).suffix.lower() in READERS or Path(name).exists()


@dataclass(frozen=True, kw_only=True)
class OwnTask(DataTask):
    """A file of the user's: its rows are read where it lies."""

    path: Path

    def samples(self, place: Place = Place()):  # noqa: B008
        return super().samples(Place(place.canvas, self.path.parent))


COLUMNS = Columns(options="options", category="category", group="group", hint="hint", kind="metric")


def own_task(name: str) -> DataTask:
    """The task of a data file.

    Raises:
        UserError: there is no such file.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"There is no data file {name!r}.")
    return OwnTask(
        name=path.name,
        dimension="own data",
        summary=f"questions of {path.name}",
        metric=ACCURACY,
        chance=0.0,
        kind="words",
        files=(Files((path.name,), COLUMNS),),
        path=path,
    )
