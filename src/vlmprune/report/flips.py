"""Answers that pruning changed: right with the whole picture, wrong with part of it, and the other way round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vlmprune.bench.runs import is_right
from vlmprune.bench.store import Record, load_records
from vlmprune.bench.table import Row, Table


@dataclass(frozen=True)
class Flip:
    """One question whose answer was right and is wrong after pruning, or the other way round.

    Attributes:
        seed: of a method that draws, else None.
        before, after: the replies.
    """

    task: str
    category: str
    id: str
    question: str
    answer: str
    before: str
    after: str
    seed: int | None


@dataclass(frozen=True)
class Kind:
    """One category of questions: how many were asked, got wrong by pruning and got right by it."""

    task: str
    category: str
    n: int
    broken: int
    repaired: int


@dataclass(frozen=True)
class Flips:
    """What a pruned row of a table changed, against the same model's vanilla run on the same questions.

    Attributes:
        row: the row.
        n: questions that both answered, over all seeds.
        broken: right before, wrong after; the tasks take turns, so that the first few show all of them.
        repaired: wrong before, right after; likewise.
        kinds: the same counted by category.
    """

    row: Row
    n: int
    broken: tuple[Flip, ...]
    repaired: tuple[Flip, ...]
    kinds: tuple[Kind, ...]


def flips(table: Table) -> list[Flips]:
    """The changed answers of each pruned row, in the table's order; none without a vanilla run."""
    vanilla = table.vanilla
    if vanilla is None:
        return []
    before = {task: {record.id: record for record in load_records(cell.result)} for task, cell in vanilla.cells.items()}
    return [_of_row(row, table, before) for row in table.rows if not row.is_vanilla]


def _of_row(row: Row, table: Table, before: dict[str, dict[str, Record]]) -> Flips:
    broken: dict[str, list[Flip]] = {}
    repaired: dict[str, list[Flip]] = {}
    asked: Counter[tuple[str, str]] = Counter()
    for task in table.tasks:
        if task not in row.cells or task not in before:
            continue
        for result in row.cells[task].results:
            for new in load_records(result):
                if new.id in table.not_asked.get(task, ()):
                    continue
                old = before[task][new.id]
                asked[task, new.category] += 1
                if is_right(old) != is_right(new):
                    flip = _flip(task, old, new, result.seed)
                    (broken if is_right(old) else repaired).setdefault(task, []).append(flip)
    kinds = [
        Kind(task, category, n, *(_count(found, task, category) for found in (broken, repaired)))
        for (task, category), n in asked.items()
    ]
    return Flips(row, asked.total(), _in_turn(broken), _in_turn(repaired), tuple(kinds))


def _count(found: dict[str, list[Flip]], task: str, category: str) -> int:
    return sum(flip.category == category for flip in found.get(task, ()))


def _in_turn(found: dict[str, list[Flip]]) -> tuple[Flip, ...]:
    """One of each task after another."""
    groups: Sequence[list[Flip]] = list(found.values())
    longest = max(map(len, groups), default=0)
    return tuple(group[k] for k in range(longest) for group in groups if k < len(group))


def _flip(task: str, old: Record, new: Record, seed: int | None) -> Flip:
    answer = new.answers[0] if new.answers else ""
    return Flip(task, new.category, new.id, new.question, answer, old.output, new.output, seed)
