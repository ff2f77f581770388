"""Scores a reply: one scorer for each kind of answer, by name.

A kind is what a question asks for. Records keep the kind, so that replies can be scored again without a model. A kind
that a judge scores has the score NaN here, unless a rule can tell (`scoring.judged`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlmprune.core.errors import UserError
from vlmprune.scoring.boxes import box
from vlmprune.scoring.documents import anls, relaxed
from vlmprune.scoring.judged import JUDGED
from vlmprune.scoring.mathvision import mathvision
from vlmprune.scoring.mathvista import mathvista
from vlmprune.scoring.options import choice, option, option_first
from vlmprune.scoring.texts import (
    contains,
    contains_formula,
    extract_exact,
    extract_number,
    extract_words,
    extract_yes_no,
    same,
)
from vlmprune.scoring.verdict import Expected, Scorer, Verdict
from vlmprune.scoring.vqa import vqa

SCORERS: dict[str, Scorer] = {
    "yesno": same(extract_yes_no),
    "choice": choice,
    "option": option,
    "option-first": option_first,
    "number": same(extract_number),
    "words": same(extract_words),
    "exact": same(extract_exact),
    "contains": contains,
    "contains-formula": contains_formula,
    "vqa": vqa,
    "anls": anls,
    "relaxed": relaxed,
    "box": box,
    "mathvision": mathvision,
    "mathvista": mathvista,
    **{name: kind.alone for name, kind in JUDGED.items()},
}


def score_reply(
    kind: str,
    reply: str,
    answers: Sequence[str],
    options: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
) -> Verdict:
    """Score a reply to a question of `kind`.

    Args:
        kind: a name in `SCORERS`.
        reply: what the model said.
        answers: the right answers: the letter of an option; for "choice" its mark in the question, "(b)".
        options: texts of the options in order, for kinds that choose among them.
        facts: what else the kind reads, by name.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in SCORERS:
        raise UserError(f"There is no kind of answer {kind!r}: choose from {', '.join(sorted(SCORERS))}.")
    return SCORERS[kind](reply, Expected(tuple(answers), tuple(options), facts or {}))


__all__ = ["SCORERS", "Expected", "Verdict", "score_reply"]
