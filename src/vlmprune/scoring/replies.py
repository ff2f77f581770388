"""Finds the answer in a reply, and scores it: one scorer for each kind of answer.

A kind is what a question asks for; its scorer is a function of the reply, the right answers and the options. Records
keep the kind, so that replies can be scored again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vlmprune.assets.questions import NUMBERS, normalise_answer
from vlmprune.core.errors import UserError


class Verdict(NamedTuple):
    """The answer found in a reply (None when there is none of the asked kind), and its score from 0.0 to 1.0."""

    extracted: str | None
    score: float


Scorer = Callable[[str, Sequence[str], Sequence[str]], Verdict]  # reply, answers, options


def score_reply(kind: str, reply: str, answers: Sequence[str], options: Sequence[str] = ()) -> Verdict:
    """Score a reply to a question of `kind`.

    Args:
        kind: a name in `SCORERS`.
        reply: what the model said.
        answers: the right answers; for "choice" the marker of the right option, "(b)".
        options: texts of the options in order, for kinds that choose among them.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in SCORERS:
        raise UserError(f"There is no kind of answer {kind!r}: choose from {', '.join(sorted(SCORERS))}.")
    return SCORERS[kind](reply, answers, options)


def extract_yes_no(reply: str, options: Sequence[str] = ()) -> str | None:
    """ "yes" or "no" when exactly one of the two words is in the reply."""
    found = {"yes", "no"} & set(re.findall(r"[a-z]+", reply.lower()))
    return found.pop() if len(found) == 1 else None


def extract_choice(reply: str, options: Sequence[str]) -> str | None:
    """The marker "(a)" of the chosen option.

    Letters in brackets count first, then letters standing alone; "a" in a sentence is an article, so alone it counts
    only as the last word or before a sign ("A. red"). Without a letter, the one option named in the reply is it.
    """
    letters = "abcdefghijklmnopqrstuvwxyz"[: len(options)]
    lowered = reply.lower()
    chosen = {letter for letter in letters if f"({letter})" in lowered}
    if not chosen:
        words = re.findall(r"[a-z]+", lowered)
        chosen = {letter for letter in letters[1:] if letter in words}
        if words[-1:] == ["a"] or re.match(r"\s*a\s*[.):]", lowered):
            chosen |= {"a"} & set(letters)
    if chosen:
        return f"({chosen.pop()})" if len(chosen) == 1 else None
    named = [k for k, option in enumerate(options) if re.search(rf"\b{re.escape(option.lower())}\b", lowered)]
    return f"({letters[named[0]]})" if len(named) == 1 else None


def extract_number(reply: str, options: Sequence[str] = ()) -> str | None:
    """The one number in the reply, as a word up to six ("three") and in digits, apart, beyond ("1 2")."""
    words = dict(zip(NUMBERS, range(len(NUMBERS)), strict=True))
    tokens = re.findall(r"\d+|[a-z]+", reply.lower())
    found = {int(token) if token.isdigit() else words[token] for token in tokens if token.isdigit() or token in words}
    if len(found) != 1:
        return None
    value = found.pop()
    return NUMBERS[value] if value < len(NUMBERS) else " ".join(str(value))


def extract_words(reply: str, options: Sequence[str] = ()) -> str | None:
    """The reply in lower-case words with digits apart and no stop at the end; None when it is empty."""
    return normalise_answer(reply) or None


def _one_of(extract: Callable[[str, Sequence[str]], str | None]) -> Scorer:
    """Right where what is found in the reply is one of the answers, in lower-case words."""

    def score(reply: str, answers: Sequence[str], options: Sequence[str]) -> Verdict:
        extracted = extract(reply, options)
        if extracted is None:
            return Verdict(None, 0.0)
        return Verdict(extracted, float(extracted in {normalise_answer(answer) for answer in answers}))

    return score


# Kinds of answer. yesno: one of the two words; choice: an option's letter; number: the one number; words: the whole
# reply, normalised.
SCORERS: dict[str, Scorer] = {
    "yesno": _one_of(extract_yes_no),
    "choice": _one_of(extract_choice),
    "number": _one_of(extract_number),
    "words": _one_of(extract_words),
}
