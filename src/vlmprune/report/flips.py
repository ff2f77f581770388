"""Answers that pruning changed: right with the whole picture, wrong with part of it, and the other way round."""

from __future__ import annotations

from dataclasses import dataclass

from vlmprune.bench.store import Record, load_records
from vlmprune.bench.table import Row, Table


@dataclass(frozen=True)
class Flip:
    """One question whose answer was right before pruning and is wrong after it."""

    task: str
    id: str
    question: str
    answer: str
    before: str
    after: str


@dataclass(frozen=True)
class Flips:
    """What a pruned row of a table changed, against the same model's vanilla run on the same questions.

    Attributes:
        row: the row.
        n: questions that both answered.
        broken: right before, wrong after; the tasks take turns, so that the first few show all of them.
        repaired: how many were wrong before and are right after.
    """

    row: Row
    n: int
    broken: tuple[Flip, ...]
    repaired: int


def flips(table: Table) -> list[Flips]:
    """The changed answers of each pruned row, in the table's order; none without a vanilla run."""
    vanilla = next((row for row in table.rows if row.is_vanilla), None)
    if vanilla is None:
        return []
    before = {task: {record.id: record for record in load_records(cell.result)} for task, cell in vanilla.cells.items()}
    return [_of_row(row, table, before) for row in table.rows if not row.is_vanilla]


def _of_row(row: Row, table: Table, before: dict[str, dict[str, Record]]) -> Flips:
    broken: list[list[Flip]] = []
    n = repaired = 0
    for task in table.tasks:
        if task not in row.cells or task not in before:
            continue
        pairs = [(before[task][after.id], after) for after in load_records(row.cells[task].result)]
        n += len(pairs)
        repaired += sum(old.score < new.score for old, new in pairs)
        broken.append([_flip(task, old, new) for old, new in pairs if old.score > new.score])
    longest = max((len(of_task) for of_task in broken), default=0)
    in_turn = tuple(of_task[k] for k in range(longest) for of_task in broken if k < len(of_task))
    return Flips(row, n, in_turn, repaired)


def _flip(task: str, old: Record, new: Record) -> Flip:
    return Flip(task, new.id, new.question, new.answers[0], old.output, new.output)
