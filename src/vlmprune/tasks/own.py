"""A task made of the user's own data: a file, a folder, or a data set of the hub (docs/own-data.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vlmprune.core.errors import UserError
from vlmprune.data.cells import UnfitError, as_text
from vlmprune.data.columns import Columns
from vlmprune.data.own_columns import own_columns, standard_row
from vlmprune.data.rows import PROBLEM, READERS, Row, read_rows
from vlmprune.data.sample import Sample
from vlmprune.data.source import Hub, data_files
from vlmprune.data.video import Clip
from vlmprune.scoring.judged import JUDGED
from vlmprune.scoring.metrics import ACCURACY
from vlmprune.scoring.replies import SCORERS, score_reply
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.task import Place

FREE, CHOICE, YES_NO = "words", "option", "yesno"  # kinds of answers where a row names none
# What a row may name as its metric: a judge has instructions for the questions of its data set alone, and a "choice"
# has its options in the question.
KINDS = tuple(kind for kind in SCORERS if kind not in JUDGED and kind != "choice")
_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]*))?(?::([\w.-]+))?", re.ASCII)


def looks_like_data(name: str) -> bool:
    """Whether a name means a file, a folder or a data set of the hub rather than a task."""
    path = Path(name).expanduser()
    return path.suffix.lower() in READERS or path.exists() or bool(_HUB.fullmatch(name))


@dataclass(frozen=True, kw_only=True)
class OwnTask(DataTask):
    """Data of the user's.

    Attributes:
        paths: the files, read where they lie; none for a data set of the hub.
    """

    paths: tuple[Path, ...] = ()

    def rows(self, place: Place) -> Iterator[tuple[Row, Path, Columns]]:
        if self.hub is not None:
            found: Iterator[tuple[Row, Path]] = ((row, Path()) for row in self.hub.rows())
        else:
            found = ((row, path.parent) for path in self.paths for row in read_rows(path))
        for row, folder in found:
            try:
                row = row if PROBLEM in row else standard_row(row)
            except UnfitError as reason:
                row = {**row, PROBLEM: str(reason)}
            yield row, folder, own_columns(row)

    def sample(self, row: Row, folder: Path, columns: Columns) -> Sample:
        try:
            clip = _clip(row)
        except UnfitError as reason:
            row, clip = {**row, PROBLEM: str(reason)}, None
        sample = columns.sample(self.name, row, "", folder, clip)
        if sample.problem:
            return replace(sample, kind=self.kind)
        sample = replace(sample, kind=sample.kind or _kind(sample))
        return replace(sample, problem=_fault(sample), kind=sample.kind if sample.kind in KINDS else self.kind)


def _clip(row: Row) -> Clip:
    """How the video of a row is sampled: its own columns `frames` and `fps`."""
    frames, rate = as_text(row.get("frames")), as_text(row.get("fps"))
    try:
        clip = Clip(Path(), int(frames) if frames else Clip.frames, float(rate) if rate else None)
    except ValueError:
        raise UnfitError(f"its frames {frames!r} or fps {rate!r} is not a number") from None
    if clip.frames < 1 or (clip.rate is not None and not 0 < clip.rate < float("inf")):
        raise UnfitError("its frames and fps must be above 0")
    return clip


def _kind(sample: Sample) -> str:
    """What the answers are, where the row does not say."""
    if sample.options:
        return CHOICE
    return YES_NO if {answer.lower() for answer in sample.answers} <= {"yes", "no"} else FREE


def _fault(sample: Sample) -> str:
    """Why replies cannot be scored, in words: an answer must be right when the model says it."""
    if sample.kind not in KINDS:
        return f"its metric {sample.kind!r} is none of {', '.join(KINDS)}"
    for answer in sample.answers:
        if score_reply(sample.kind, answer, sample.answers, sample.options).score == 0:
            return f"its answer {answer!r} would not count as right by its metric {sample.kind!r}"
    return ""


def own_task(name: str) -> OwnTask:
    """The task of a data file, a folder, or a data set of the hub ("owner/name", "owner/name:config:split").

    Raises:
        UserError: there is no such file, or a folder has no data file or several.
    """
    path = Path(name).expanduser()
    if path.exists():
        path = path.resolve()
        return _task(path.name, paths=data_files(path) if path.is_dir() else (path,))
    if path.suffix.lower() in READERS or not (asked := _HUB.fullmatch(name)):
        raise UserError(f"There is no data file {name!r}.")
    hub = Hub(asked[1], asked[3] or None, Columns(), asked[2] or None)
    return _task(name, hub=hub)


def _task(name: str, paths: tuple[Path, ...] = (), hub: Hub | None = None) -> OwnTask:
    return OwnTask(
        name=name,
        dimension="own data",
        summary=f"questions of {name}",
        metric=ACCURACY,
        chance=0.0,
        kind=FREE,
        paths=paths,
        hub=hub,
    )
