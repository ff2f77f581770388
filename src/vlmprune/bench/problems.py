"""Questions that could not be asked: they are in the records with the reason, and never scored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from vlmprune.bench.store import Run, records_path
from vlmprune.core.errors import UserError

NAMED = 3  # questions that a note names


def problem_note(task: str, n: int, not_asked: Mapping[str, str]) -> str:
    """How many questions of a task could not be asked, and why the first; "" where all could.

    Args:
        n: all questions.
        not_asked: the problems by id, "" for a question that is left out with its group.
    """
    bad = {name: why for name, why in not_asked.items() if why}
    if not bad:
        return ""
    named = "; ".join(f"{name} ({why})" for name, why in islice(bad.items(), NAMED))
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return f"{len(bad)} of {n} questions of {task} could not be asked and are not counted: {named}{more}."


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
