"""Kinds that choose an option: by a mark in the question's own text, by VLMEvalKit's rules, by lmms-eval's."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmprune.scoring.verdict import LETTERS, UNPARSED, Expected, Verdict

_SIGNS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_REFUSALS = (  # replies that VLMEvalKit takes for a refusal to answer
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_USUAL = 8  # letters that may be meant where the options stand in the question's own text
_TAIL = 5  # a letter counts only this near to the end of the reply: at the last four words


def choice(reply: str, expected: Expected) -> Verdict:
    """Right where the chosen mark, "(b)", is the answer: for the generated questions, which hold their options."""
    found = extract_choice(reply, expected.options)
    return UNPARSED if found is None else Verdict(found, float(found in expected.answers))


def option(reply: str, expected: Expected) -> Verdict:
    """Right where the letter that VLMEvalKit's rules find is the answer."""
    found = extract_option(reply, expected.options)
    return UNPARSED if found is None else Verdict(found, float(found in expected.answers))


def option_first(reply: str, expected: Expected) -> Verdict:
    """Right where the first character of the reply is the answer (lmms-eval).

    lmms-eval compares it as it stands; here a bracket before it is passed over, and case does not count. It is a letter
    only where no word goes on from it: "Because" does not choose B.
    """
    letters = LETTERS[: len(expected.options) or _USUAL]
    start = re.match(rf"\s*\(?([{letters}])(?!\w)", reply.upper())
    return UNPARSED if start is None else Verdict(start[1], float(start[1] in expected.answers))


def extract_option(reply: str, options: Sequence[str]) -> str | None:
    """An option's letter, by VLMEvalKit's rules for a reply that no judge reads.

    Without signs such as brackets and stops, exactly one of the letters is a word of the reply, and it is among the
    last four. Else exactly one option's text is contained in the reply, which is at most twice as long as all texts
    together. Case counts for letters, and not for texts.
    """
    if any(refusal in reply for refusal in _REFUSALS):
        return None
    letters = LETTERS[: len(options) or _USUAL]
    words = reply.translate(_SIGNS).split()
    chosen = [letter for letter in letters if letter in words]
    if len(chosen) == 1 and words.index(chosen[0]) > len(words) - _TAIL:
        return chosen[0]
    if len(reply) > 2 * sum(map(len, options)):
        return None
    named = [letter for letter, text in zip(letters, options, strict=False) if text and text.lower() in reply.lower()]
    return named[0] if len(named) == 1 else None


def extract_choice(reply: str, options: Sequence[str]) -> str | None:
    """The marker "(a)" of the chosen option.

    Letters in brackets count first, then letters standing alone; "a" in a sentence is an article, so alone it counts
    only as the last word or before a sign ("A. red"). Without a letter, the one option named in the reply is it.
    """
    letters = LETTERS.lower()[: len(options)]
    lowered = reply.lower()
    chosen = {letter for letter in letters if f"({letter})" in lowered}
    if not chosen:
        words = re.findall(r"[a-z]+", lowered)
        chosen = {letter for letter in letters[1:] if letter in words}
        if words[-1:] == ["a"] or re.match(r"\s*a\s*[.):]", lowered):
            chosen |= {"a"} & set(letters)
    if chosen:
        return f"({chosen.pop()})" if len(chosen) == 1 else None
    named = [k for k, text in enumerate(options) if re.search(rf"\b{re.escape(text.lower())}\b", lowered)]
    return f"({letters[named[0]]})" if len(named) == 1 else None
