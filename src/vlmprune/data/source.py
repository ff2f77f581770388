"""Where a data set lies: files below a folder, or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlmprune.core.errors import Option, UserError
from vlmprune.data.columns import Columns
from vlmprune.data.rows import Row, read_rows


@dataclass(frozen=True)
class Files:
    """A layout of local files.

    Attributes:
        names: the files, as patterns below the folder; one layout has all of them or none.
        columns: of their rows.
        pictures: the folder that paths in a row are relative to, below that of the file.
    """

    names: tuple[str, ...]
    columns: Columns
    pictures: str = ""

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
        id, config, split: as `datasets.load_dataset` takes them.
        columns: of its rows.
    """

    id: str
    split: str
    columns: Columns
    config: str | None = None


def find_files(layouts: tuple[Files, ...], task: str, data: Path) -> tuple[Files, list[Path]] | None:
    """The first layout of which `data`, or the folder of the task's name in it, has the files."""
    if not data.is_dir():
        raise UserError(Option("data", str(data)), " is not a folder: give one that holds local copies of data sets.")
    for folder in (data / task, data):
        for layout in layouts:
            if paths := layout.find(folder):
                return layout, paths
    return None
