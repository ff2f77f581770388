"""Answers that another tool has recorded: read, brought to their questions, and scored as a run's are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmprune.bench.batch import NO_TOKENS, record_of
from vlmprune.bench.judging import judge_records
from vlmprune.bench.protocol import PLAIN, Protocol
from vlmprune.bench.stats import Estimate, estimate
from vlmprune.bench.store import Record, scored
from vlmprune.bench.units import units_of
from vlmprune.core.errors import Option, UserError
from vlmprune.data.rows import FILE, LINE, Row, read_rows
from vlmprune.data.sample import Sample
from vlmprune.scoring.judge import Judge
from vlmprune.scoring.metrics import accuracy_by_category, unparsed_share
from vlmprune.tasks.task import Place, Task

ID, OUTPUT = "id", "output"
ALIASES = {
    ID: ("question_id", "sample_id", "index"),
    OUTPUT: ("response", "prediction", "pred", "reply", "text"),
}


@dataclass(frozen=True)
class Answers:
    """A file of recorded answers.

    Attributes:
        path: the file.
        by_id: the replies by the ids that the file names; empty where it names none.
        in_order: all replies.
    """

    path: Path
    by_id: Mapping[str, str]
    in_order: Sequence[str]


def read_answers(path: Path) -> Answers:
    """Read a file of answers: JSON lines, JSON, CSV, TSV or parquet.

    Raises:
        UserError: it cannot be read, has no column of replies or several, or an id stands twice.
    """
    rows = list(read_rows(path))
    if not rows:
        raise UserError(f"{str(path)!r} has no answers.")
    output, name = _column(path, rows[0], OUTPUT), _column(path, rows[0], ID)
    if output is None:
        names = ", ".join(column for column in rows[0] if column not in (FILE, LINE)) or "none"
        wanted = ", ".join((OUTPUT, *ALIASES[OUTPUT]))
        raise UserError(f"{str(path)!r} has no column of replies ({wanted}): its columns are {names}.")
    replies = [_cell(path, row, output) for row in rows]
    if name is None:
        return Answers(path, {}, replies)
    ids = [_cell(path, row, name) for row in rows]
    if (twice := Counter(ids).most_common(1)[0])[1] > 1:
        raise UserError(f"The id {twice[0]!r} stands {twice[1]} times in {str(path)!r}: give one answer a question.")
    return Answers(path, dict(zip(ids, replies, strict=True)), replies)


def _column(path: Path, row: Row, meaning: str) -> str | None:
    """The column of that meaning: by its own name, or by the one alias that is there."""
    if meaning in row:
        return meaning
    there = [alias for alias in ALIASES[meaning] if alias in row]
    if len(there) > 1:
        raise UserError(f"{str(path)!r} has the columns {' and '.join(there)}: call the one that is meant {meaning!r}.")
    return there[0] if there else None


def _cell(path: Path, row: Row, column: str) -> str:
    value = row.get(column)
    if isinstance(value, float):  # a table makes 3.0 of 3, and NaN of nothing
        value = "" if math.isnan(value) else int(value) if value.is_integer() else value
    if column not in row or isinstance(value, dict | list):
        raise UserError(f"Line {row[LINE]} of {str(path)!r} has no text in the column {column!r}.")
    return "" if value is None else str(value)


@dataclass(frozen=True)
class Scores:
    """The figures of recorded answers, as `vlmprune bench` gives them for a run.

    Attributes:
        task: scored on which.
        value: the primary metric in percent with its 95 % interval; NaN where it is not measured.
        n, units: questions that are scored, and what was drawn independently of them.
        points: sum of the scores.
        unparsed: share of replies without an answer of the asked kind, percent.
        details: further figures of the task.
        categories: mean score of each category, percent.
        problems: why questions are in no figure, by id.
        records: all of them.
    """

    task: Task
    value: Estimate
    n: int
    units: int
    points: float
    unparsed: float
    details: Mapping[str, float]
    categories: Mapping[str, float]
    problems: Mapping[str, str]
    records: tuple[Record, ...]

    @property
    def measured(self) -> bool:
        return not math.isnan(self.points)


def score_answers(
    task: Task,
    answers: Answers,
    place: Place,
    *,
    protocol: Protocol = PLAIN,
    partial: bool = False,
    judge: Judge | None = None,
) -> Scores:
    """Score recorded answers to a task.

    Args:
        answers: with the ids of the data, alone or behind the task's name ("pope/12"), or in the order of the data.
        place: where the data is. Its pictures are not needed.
        protocol: by whose rules replies are read, where the task has several.
        partial: score only what is answered.
        judge: for tasks that need one; without it their figures are NaN.

    Raises:
        UserError: the data is missing, the answers are not those of its questions, or the judge does not answer.
    """
    if task.endless:
        raise UserError(f"{task.name} is generated without end, so answers to it cannot be scored: give a data set.")
    records = [
        record_of(
            sample,
            "" if sample.problem else reply,
            protocol.kind(task, sample),
            **NO_TOKENS,
            problem=sample.problem,
        )
        for sample, reply in _matched(task, answers, replace(place, pictures=False), partial)
    ]
    if judge is not None:
        said = judge_records(records, judge)
        records = [scored(record, said.get(record.id)) for record in records]
    return _scores(task, records)


def _matched(task: Task, answers: Answers, place: Place, partial: bool) -> Iterator[tuple[Sample, str]]:
    """Questions with their replies, in the order of the data."""
    if not answers.by_id:
        yield from _in_order(task, answers, place, partial)
        return
    left, missing, groups = dict(answers.by_id), [], set()
    for sample in task.samples(place):
        found = [name for name in (sample.id, sample.id.removeprefix(f"{task.name}/")) if name in left]
        if found:
            groups.add(sample.group)
            yield sample, left.pop(found[0])
        elif not sample.problem:
            missing.append(sample)
    if left:
        raise UserError(
            f"{len(left):,} of {len(answers.by_id):,} ids in {str(answers.path)!r} are none of {task.name}'s, as "
            f"{next(iter(left))!r}: its ids are like {_like(task, place)!r}."
        )
    if missing and not partial:
        first = f"{len(missing):,} questions of {task.name} have no answer in {str(answers.path)!r}, as "
        raise UserError(first, f"{missing[0].id!r}: give all, or ", Option("partial", True), " for what is there.")
    if torn := [sample for sample in missing if task.grouped and sample.group in groups]:
        raise UserError(
            f"{task.name} counts questions in groups, and {torn[0].id!r} has no answer in {str(answers.path)!r} while "
            "others of its group have: give the whole group, or nothing of it."
        )


def _in_order(task: Task, answers: Answers, place: Place, partial: bool) -> Iterator[tuple[Sample, str]]:
    count, n = 0, len(answers.in_order)
    for sample in task.samples(place):
        if count < n:
            yield sample, answers.in_order[count]
        count += 1
    if count < n or (count > n and not partial):
        raise UserError(
            f"{str(answers.path)!r} has {n:,} answers without ids, and {task.name} has {count:,} questions: give one "
            f"for each question in the order of the data, or a column {ID!r}."
        )


def _like(task: Task, place: Place) -> str:
    return next(iter(task.samples(place))).id.removeprefix(f"{task.name}/")


def _scores(task: Task, records: Sequence[Record]) -> Scores:
    counted = [record for record in records if not record.problem]
    if not counted:
        why = next((f": {record.problem} ({record.id})" for record in records), "")
        raise UserError(f"No answer to {task.name} can be scored{why}.")
    units = units_of(task.metric, [counted])
    return Scores(
        task=task,
        value=estimate(units),
        n=len(counted),
        units=units.n,
        points=sum(record.score for record in counted),
        unparsed=unparsed_share(counted),
        details=task.metric.details(units.counts[0].sum(0)),
        categories=accuracy_by_category(counted),
        problems={record.id: record.problem for record in records if record.problem},
        records=tuple(records),
    )


def as_json(scores: Scores) -> dict[str, Any]:
    """The figures for other programs; null for what is not measured."""
    value = scores.value
    return {
        "task": scores.task.name,
        "metric": scores.task.metric.name,
        "value": _number(value.value),
        "low": _number(value.low),
        "high": _number(value.high),
        "n": scores.n,
        "units": scores.units,
        "points": _number(scores.points),
        "unparsed": _number(scores.unparsed),
        "details": {name: _number(figure) for name, figure in scores.details.items()},
        "categories": {name: _number(figure) for name, figure in scores.categories.items()},
        "problems": dict(scores.problems),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)
