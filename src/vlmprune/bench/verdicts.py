"""What a judge has said of a run's replies: a file beside the records, so that they can be scored again without it.

Each line has the id of a sample, the judge, the key of what it was asked (`scoring.judge`) and its reply as it came. A
line counts only where today's question to that judge would be the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vlmprune.core.outputs import write_whole
from vlmprune.scoring.judge import prompt_key
from vlmprune.scoring.judged import JUDGED
from vlmprune.scoring.replies import score_reply
from vlmprune.scoring.verdict import Expected, Verdict

UNREADABLE = "the judge's reply has not the form that it was asked for"


class Said(NamedTuple):
    """A judge's reply."""

    judge: str
    key: str
    reply: str


class Replied(Protocol):
    """What is judged of a record."""

    @property
    def kind(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def output(self) -> str: ...
    @property
    def answers(self) -> tuple[str, ...]: ...
    @property
    def options(self) -> tuple[str, ...]: ...
    @property
    def facts(self) -> Mapping[str, str]: ...


def prompt_of(record: Replied) -> str | None:
    """What a judge is asked about a record; None where no judge is needed."""
    judged, expected = JUDGED.get(record.kind), _expected(record)
    if judged is None or judged.rule(record.output, expected) is not None:
        return None
    return judged.prompt(record.question, record.output, expected)


def verdict_on(record: Replied, said: Said | None) -> tuple[Verdict, str]:
    """The verdict on a record, and why it has none, in words.

    Without a judge's reply the score of a judged record is NaN.
    """
    alone = score_reply(record.kind, record.output, record.answers, record.options, record.facts)
    prompt = prompt_of(record) if math.isnan(alone.score) else None
    if prompt is None or said is None or said.key != prompt_key(said.judge, prompt):
        return alone, ""
    verdict = JUDGED[record.kind].read(said.reply, _expected(record))
    return (alone, UNREADABLE) if verdict is None else (verdict, "")


def _expected(record: Replied) -> Expected:
    return Expected(record.answers, record.options, record.facts)


def verdicts_path(records: Path) -> Path:
    """Where the verdicts on a file of records are."""
    return records.with_suffix(".verdicts.jsonl")


def read_verdicts(records: Path) -> dict[str, Said]:
    """What was said, by the samples' ids; nothing where there is no such file. A broken line is passed over."""
    path = verdicts_path(records)
    found: dict[str, Said] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            values: dict[str, Any] = json.loads(line)
            found[values["id"]] = Said(values["judge"], values["key"], values["reply"])
        except (ValueError, KeyError, TypeError):
            continue
    return found


def judges_of(records: Path) -> list[str]:
    """Who has judged a file of records; nobody where there are no verdicts."""
    return list(dict.fromkeys(said.judge for said in read_verdicts(records).values()))


def write_verdicts(records: Path, said: Iterable[tuple[str, Said]]) -> None:
    """Write all verdicts of a run: the file is there whole or not at all."""
    lines = (json.dumps({"id": name, **one._asdict()}, ensure_ascii=False) + "\n" for name, one in said)
    write_whole(verdicts_path(records), "".join(lines))
