"""What has been measured, on disk: a line for each answer and each time, so that the same command goes on.

The name of the file is a hash of all that decides what is measured. The target is not part of it: a second search with
another target measures only what the first one did not.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from vlmprune.core.errors import UserError

FOLDER = "tune"


@dataclass(frozen=True)
class Said:
    """An answer, and the visual tokens that were left for it."""

    text: str
    kept: int


@dataclass
class Journal:
    """The measurements under one setting.

    Attributes:
        path: the file.
        answers: by candidate and id of the question.
        seconds: by candidate and turn.
    """

    path: Path
    answers: dict[str, dict[str, Said]] = field(default_factory=lambda: defaultdict(dict))
    seconds: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))

    @classmethod
    def open(cls, folder: Path, setting: Mapping[str, Any]) -> Journal:
        """Read what there is. A line that a killed process left unfinished is taken off.

        Raises:
            UserError: the file holds something else.
        """
        key = sha256(json.dumps(setting, sort_keys=True, default=str).encode()).hexdigest()[:12]
        journal = cls(folder / FOLDER / f"{key}.jsonl")
        journal.path.parent.mkdir(parents=True, exist_ok=True)
        if not journal.path.exists():
            return journal
        content = journal.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            journal.path.write_bytes(whole)
        try:
            for line in whole.decode("utf-8").splitlines():
                journal._take(json.loads(line))
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{str(journal.path)!r} is not a journal of vlmprune tune: delete it.") from None
        return journal

    def answered(self, candidate: str, question: str, said: Said) -> None:
        self._note({"candidate": candidate, "question": question, "answer": said.text, "kept": said.kept})

    def timed(self, candidate: str, turn: int, seconds: float) -> None:
        self._note({"candidate": candidate, "turn": turn, "seconds": seconds})

    def _note(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        if "turn" in line:
            self.seconds[line["candidate"]][int(line["turn"])] = float(line["seconds"])
        else:
            self.answers[line["candidate"]][line["question"]] = Said(str(line["answer"]), int(line["kept"]))
