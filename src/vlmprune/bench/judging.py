"""Has a judge score the finished runs that need one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from vlmprune.bench.store import Record, Result, load_records
from vlmprune.bench.verdicts import Said, prompt_of, write_verdicts
from vlmprune.core.errors import Option, UserError
from vlmprune.scoring.judge import Judge, prompt_key

CACHE = "judge.jsonl"  # in a result folder


def judge_for(url: str | None, model: str | None, cache: Path) -> Judge | None:
    """The judge that the command line names, or None.

    Raises:
        UserError: only one of the two is given, or the URL is none.
    """
    if (url is None) != (model is None):
        missing = Option("judge" if url is None else "judge_model")
        raise UserError("A judge has a URL and the name of a model there: give ", missing, ", too.")
    return None if url is None or model is None else Judge(url, model, cache)


def judge_results(results: Iterable[Result], judge: Judge) -> None:
    """Judge the replies of runs, and write the verdicts beside their records.

    A run is judged whole or not at all; what the judge said is cached.

    Raises:
        UserError: records are lost, the judge does not answer, or a file cannot be written.
    """
    for result in results:
        if said := judge_records(load_records(result), judge):
            try:
                write_verdicts(result.records_path, said.items())
            except OSError as error:
                raise UserError(f"The verdicts cannot be written: {error.strerror or error}.") from error


def judge_records(records: Sequence[Record], judge: Judge) -> dict[str, Said]:
    """What the judge says of the records that need it, by their ids."""
    asked = {record.id: prompt for record in records if _was_asked(record) and (prompt := prompt_of(record))}
    replies = judge.answers(asked.values())
    return {
        name: Said(judge.model, prompt_key(judge.model, prompt), reply)
        for (name, prompt), reply in zip(asked.items(), replies, strict=True)
    }


def _was_asked(record: Record) -> bool:
    """Whether the model was asked the question; a record that lacks but a readable verdict was."""
    return not record.problem or bool(record.input_tokens)
