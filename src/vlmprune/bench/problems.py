"""Questions that could not be asked: they are in the records with the reason, and never scored."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from vlmprune.bench.store import Record, Result, Run, load_records, records_path
from vlmprune.core.errors import UserError

NAMED = 3  # questions that a note names


def problem_notes(results: Iterable[Result]) -> list[str]:
    """A sentence for each task with questions that could not be asked, of the results of one model."""
    by_task: dict[str, Result] = {}
    for result in results:
        by_task.setdefault(result.task, result)
    notes = [problem_note(task, load_records(result)) for task, result in by_task.items()]
    return [note for note in notes if note]


def problem_note(task: str, records: list[Record]) -> str:
    """How many questions of a task could not be asked, and why the first; "" where all could."""
    bad = [record for record in records if record.problem]
    if not bad:
        return ""
    named = "; ".join(f"{record.id} ({record.problem})" for record in bad[:NAMED])
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return f"{len(bad)} of {len(records)} questions of {task} could not be asked and are not counted: {named}{more}."


def check_some_asked(folder: Path, run: Run) -> None:
    """Raise UserError where not one question of a complete run could be asked."""
    first = None
    with records_path(folder, run).open("rb") as lines:
        for line in lines:
            record = json.loads(line)
            if not record.get("problem"):
                return
            first = first or record
    if first is not None:
        raise UserError(f"No question of {run.task} can be asked of {run.model}: {first['problem']} ({first['id']}).")
