"""Every question of a model's runs with all replies, as data that the page's script lists and filters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vlmprune.bench.runs import is_right
from vlmprune.bench.store import Record, load_records
from vlmprune.bench.table import Table
from vlmprune.report.tables import Block, row_name
from vlmprune.report.thumbs import Thumb

MOST = 300_000  # replies; more would make the page too heavy to open


class Questions(NamedTuple):
    """The questions as JSON that can stand inside a script element (empty if none), how many, and of how many."""

    json: str
    shown: int
    total: int


def questions_of(table: Table, parts: Sequence[Block], thumbs: Mapping[tuple[str, str], Thumb]) -> Questions:
    """The questions of the unpruned run; the first of each task alone where all would be more than `MOST` replies.

    `rows` has the name and budget of each pruned row, `texts` every text once. A question is its task, category,
    question, right answer and unpruned reply (numbers of texts), whether that is right, the id of its small picture,
    and for each row the number of its reply's text, or -1, and whether it is right ("1", "0", "-"). Of a method that
    draws, the replies are those of the first seed.
    """
    vanilla = table.vanilla
    if vanilla is None:
        return Questions("", 0, 0)
    rows = [(block, row) for block in parts for row in block.rows if not row.is_vanilla]
    texts: dict[str, int] = {}

    def number(text: str) -> int:
        return texts.setdefault(text, len(texts))

    asked = {
        task: [record for record in load_records(cell.results[0]) if record.id not in table.not_asked.get(task, ())]
        for task, cell in vanilla.cells.items()
    }
    total, most = sum(map(len, asked.values())), MOST // max(1, len(rows) * len(asked))
    if total * len(rows) > MOST:
        asked = {task: records[:most] for task, records in asked.items()}
    found: list[list[Any]] = []
    for task, records in asked.items():
        replies = [_by_id(row.cells[task].results[0]) if task in row.cells else {} for _, row in rows]
        for old in records:
            new = [reply.get(old.id) for reply in replies]
            thumb = thumbs.get((task, old.id))
            about = [task, old.category, _asked(old), old.answers[0] if old.answers else "", old.output]
            found.append(
                [
                    *map(number, about),
                    int(is_right(old)),
                    thumb.id if thumb else "",
                    [-1 if one is None else number(one.output) for one in new],
                    "".join("-" if one is None else str(int(is_right(one))) for one in new),
                ]
            )
    names = [[row_name(block, row), block.title] for block, row in rows]
    data = {"rows": names, "texts": [*texts], "questions": found}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return Questions(text if found else "", len(found), total)


def _by_id(result: Any) -> dict[str, Record]:
    return {record.id: record for record in load_records(result)}


def _asked(record: Record) -> str:
    """The question with its options, where it does not name them itself."""
    if all(option in record.question for option in record.options):
        return record.question
    return f"{record.question} [{' / '.join(record.options)}]"
