"""The runs of a row and task: its seeds side by side, with their records and what these count."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from statistics import fmean

from vlmprune.bench.store import Record, Result, load_records
from vlmprune.bench.units import Units, units_of, without_problems
from vlmprune.core.errors import UserError
from vlmprune.scoring.metrics import METRICS

RIGHT = 0.5  # a graded answer is right from half of the points


@dataclass(frozen=True)
class Group:
    """One row and task.

    Attributes:
        results: one a seed; a single one unless the method draws.
        records: of each result, the same samples in the same order.
        units: what they count.
    """

    results: tuple[Result, ...]
    records: tuple[list[Record], ...]
    units: Units

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(result.seed for result in self.results if result.seed is not None)

    @property
    def is_vanilla(self) -> bool:
        return self.results[0].is_vanilla


Name = tuple[str, str | None]  # of a row: recipe and position policy
Groups = dict[Name, dict[str, Group]]  # of each row by task


def groups_of(results: Sequence[Result]) -> tuple[Groups, dict[str, dict[str, str]]]:
    """Runs by row and task, and by task what `without_problems` left out.

    A sample that one run could not ask is in no other run's records either, so that all are compared on the same.
    A task of which nothing could be asked has no group.

    Raises:
        UserError: records are lost or broken, or runs of a task are not on the same samples.
    """
    records: dict[str, list[Record]] = {}
    not_asked: dict[str, dict[str, str]] = {}
    for task in dict.fromkeys(result.task for result in results):
        of_task = [result for result in results if result.task == task]
        found = [(METRICS[result.metric], load_records(result)) for result in of_task]
        try:
            asked, left_out = without_problems(found)
        except ValueError:
            where = of_task[0].records_path.parent
            raise UserError(f"Runs in {str(where)!r} are not on the same samples: delete them and run again.") from None
        records |= {result.key: list(of_run) for result, of_run in zip(of_task, asked, strict=True)}
        if left_out:
            not_asked[task] = left_out
    rows: dict[Name, dict[str, list[Result]]] = {}
    for result in results:
        if records[result.key]:
            rows.setdefault((result.recipe, result.positions), {}).setdefault(result.task, []).append(result)
    groups = {
        name: {task: _group(runs, records) for task, runs in of_row.items()} for name, of_row in rows.items() if of_row
    }
    return groups, not_asked


def _group(runs: Sequence[Result], records: dict[str, list[Record]]) -> Group:
    every = [run for run in runs if run.seed is None]  # holds whatever the seed is
    seeds = every[-1:] or sorted(runs, key=lambda run: run.seed or 0)
    found = tuple(records[run.key] for run in seeds)
    return Group(tuple(seeds), found, units_of(METRICS[runs[0].metric], found))


def is_right(record: Record) -> bool:
    return record.score >= RIGHT


def wrong_on(group: Group) -> frozenset[str]:
    """Ids of the samples that the first seed gets wrong."""
    return frozenset(record.id for record in group.records[0] if not is_right(record))


def score_on(group: Group, ids: Container[str] | None = None) -> float:
    """Mean score of all samples or those of some ids, percent, mean over the seeds."""
    return 100.0 * fmean(
        fmean(record.score for record in records if ids is None or record.id in ids) for records in group.records
    )


def loyalty(group: Group, vanilla: Group) -> float:
    """Share of samples, percent, with the same answer as vanilla's; without an answer in either, the same reply."""
    base = vanilla.records[0]
    same = [
        fmean(_answer(new) == _answer(old) for new, old in zip(records, base, strict=True)) for records in group.records
    ]
    return 100.0 * fmean(same)


def _answer(record: Record) -> tuple[bool, str]:
    return (True, record.extracted) if record.extracted is not None else (False, record.output)
