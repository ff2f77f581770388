"""Kinds whose answer is a word or some text: yes or no, a number, words, an exact or a contained text."""

from __future__ import annotations

import re
import string
from collections.abc import Callable

from vlmprune.assets.questions import NUMBERS, normalise_answer
from vlmprune.scoring.verdict import UNPARSED, Expected, Scorer, Verdict

_NUMBER = re.compile(r"(?<![\w.])-?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\w%])|(?<!\w)-?\d*\.?\d+|[a-z]+")


def extract_yes_no(reply: str) -> str | None:
    """ "yes" or "no" when exactly one of the two words is in the reply."""
    found = {"yes", "no"} & set(re.findall(r"[a-z]+", reply.lower()))
    return found.pop() if len(found) == 1 else None


def extract_number(reply: str) -> str | None:
    """The one number in the reply: as a word up to six ("three"), beyond with digits apart ("1 2").

    "1,200" is one number, and so is "-0.5". A number that stands twice is one.
    """
    words = dict(zip(NUMBERS, map(float, range(len(NUMBERS))), strict=True))
    tokens = _NUMBER.findall(reply.lower())
    found = {words[token] if token in words else float(token.replace(",", "")) for token in tokens if _counts(token)}
    if len(found) != 1:
        return None
    value = found.pop()
    if not value.is_integer():
        return str(value)
    whole = int(value)
    return NUMBERS[whole] if 0 <= whole < len(NUMBERS) else " ".join(str(whole))


def _counts(token: str) -> bool:
    return token in NUMBERS or not token.isalpha()


def extract_words(reply: str) -> str | None:
    """The reply in lower-case words with digits apart and no stop at the end; None when it is empty."""
    return normalise_answer(reply) or None


def extract_exact(reply: str) -> str | None:
    """The reply in lower case without punctuation and space at its ends, as lmms-eval compares GQA's answers."""
    return reply.lower().translate(str.maketrans("", "", string.punctuation)).strip() or None


def same(extract: Callable[[str], str | None]) -> Scorer:
    """Right where the same is found in the reply and in one of the answers."""

    def score(reply: str, expected: Expected) -> Verdict:
        found = extract(reply)
        return UNPARSED if found is None else Verdict(found, float(found in map(extract, expected.answers)))

    return score


def contains(reply: str, expected: Expected) -> Verdict:
    """Right where an answer stands in the reply, both in lower case and on one line (OCRBench)."""
    return _contains(reply, expected, lambda text: text.lower().strip().replace("\n", " "))


def contains_formula(reply: str, expected: Expected) -> Verdict:
    """Right where an answer stands in the reply, both without spaces, in their own case (OCRBench's formulas)."""
    return _contains(reply, expected, lambda text: text.strip().replace("\n", " ").replace(" ", ""))


def _contains(reply: str, expected: Expected, fold: Callable[[str], str]) -> Verdict:
    found = fold(reply)
    if not found:
        return UNPARSED
    answers = [answer for answer in map(fold, expected.answers) if answer]  # an empty one would be in every reply
    return Verdict(found, float(any(answer in found for answer in answers)))
