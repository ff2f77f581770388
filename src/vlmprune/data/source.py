"""Where a data set lies: files below a folder, or the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlmprune.core.errors import Option, UserError
from vlmprune.data.columns import Columns
from vlmprune.data.hub import hub_rows
from vlmprune.data.rows import READERS, Row, read_rows


@dataclass(frozen=True)
class Files:
    """A layout of local files.

    Attributes:
        names: the files, as patterns below the folder; one layout has all of them or none.
        columns: of their rows.
        pictures: the folder that paths in a row are relative to, below that of the file.
        telling: whether the names tell this data set from others. `data/test-*.parquet` is in many, and is read only
            from a folder of the task's name.
    """

    names: tuple[str, ...]
    columns: Columns
    pictures: str = ""
    telling: bool = True

    def find(self, folder: Path) -> list[Path]:
        """The files in a folder, by name; none unless every pattern has one."""
        found = [sorted(folder.glob(name)) for name in self.names]
        return [path for paths in found for path in paths] if all(found) else []

    def rows(self, paths: list[Path]) -> Iterator[tuple[Row, Path]]:
        """Rows, each with the folder that its paths are relative to."""
        for path in paths:
            for row in read_rows(path):
                yield row, path.parent / self.pictures


@dataclass(frozen=True)
class Hub:
    """A data set of the hub.

    Attributes:
        id, config, split: as `datasets.load_dataset` takes them; without a split the test or validation split.
        columns: of its rows.
    """

    id: str
    split: str | None
    columns: Columns
    config: str | None = None

    def rows(self) -> Iterator[Row]:
        """Its rows, as they stream."""
        return hub_rows(self.id, self.config, self.split)


def find_files(layouts: tuple[Files, ...], task: str, data: Path) -> tuple[Files, list[Path]] | None:
    """The first layout whose files are in the folder of the task's name in `data`, or in `data` itself."""
    if not data.is_dir():
        raise UserError(Option("data", str(data)), " is not a folder: give one that holds local copies of data sets.")
    for folder, of_the_task in ((data / task, True), (data, data.resolve().name.lower() == task.lower())):
        for layout in layouts:
            if (of_the_task or layout.telling) and (paths := layout.find(folder)):
                return layout, paths
    return None


METADATA = "metadata"  # the data file of a folder of pictures, as the library datasets reads them
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")


def data_files(folder: Path) -> tuple[Path, ...]:
    """The data files of a folder of the user's: its metadata.*, its only data file, or the pieces of one.

    Raises:
        UserError: it has none, or several that are not pieces of one.
    """
    try:
        for place in (folder, folder / "data"):
            paths = sorted(path for path in place.glob("*.*") if path.suffix.lower() in READERS and path.is_file())
            paths = [path for path in paths if path.stem == METADATA] or paths
            if len({_shard(path) for path in paths}) == 1:
                return tuple(paths)
            if paths:
                named = ", ".join(path.name for path in paths[:5]) + (", ..." if len(paths) > 5 else "")
                raise UserError(f"{str(place)!r} has several data files ({named}): give one of them.")
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be read: {error.strerror or error}.") from None
    raise UserError(f"{str(folder)!r} has no data file: it needs one that ends in {', '.join(READERS)}.")


def _shard(path: Path) -> str:
    """The name that the pieces of one file share."""
    piece = _SHARD.fullmatch(path.stem)
    return (piece[1] if piece else path.stem) + path.suffix
