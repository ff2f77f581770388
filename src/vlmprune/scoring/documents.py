"""Graded text (ANLS of DocVQA) and figures within five percent (relaxed accuracy of ChartQA)."""

from __future__ import annotations

import math

from vlmprune.scoring.verdict import UNPARSED, Expected, Verdict

THRESHOLD = 0.5  # an answer that is farther away than this scores nothing
TOLERANCE = 0.05


def anls(reply: str, expected: Expected) -> Verdict:
    """Average normalised Levenshtein similarity (Biten et al., ICCV 2019): 1 - the least distance to an answer.

    The distance is that of the lower-case texts with single spaces, over the length of the longer text as it was given
    (as in lmms-eval and VLMEvalKit). Similarity below 0.5 counts as 0.
    """
    found = " ".join(reply.lower().split())
    if not found:
        return UNPARSED
    nearest = min((_distance(reply, answer) for answer in expected.answers), default=1.0)
    return Verdict(found, 1.0 - nearest if 1.0 - nearest >= THRESHOLD else 0.0)


def _distance(reply: str, answer: str) -> float:
    length = max(len(reply), len(answer))
    return levenshtein(" ".join(reply.lower().split()), " ".join(answer.lower().split())) / length if length else 0.0


def levenshtein(first: str, second: str) -> int:
    """How many characters must be inserted, deleted or replaced to make one text of the other."""
    if len(first) < len(second):
        first, second = second, first
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


def relaxed(reply: str, expected: Expected) -> Verdict:
    """Relaxed accuracy (Masry et al., Findings of ACL 2022): a figure within 5 % of the answer, or the same text.

    "12 %" has to be written "12%" to be a figure, 0.12. An answer of 0, and one that is text, has to be met exactly but
    for case and for space at the ends.
    """
    found = reply.strip()
    if not found:
        return UNPARSED
    return Verdict(found.lower(), float(any(_near(found, answer.strip()) for answer in expected.answers)))


def _near(reply: str, answer: str) -> bool:
    value, target = _figure(reply), _figure(answer)
    if value is not None and target:
        return abs(value - target) / abs(target) <= TOLERANCE
    return reply.lower() == answer.lower()


def _figure(text: str) -> float | None:
    number = text.rstrip("%")
    try:
        value = float(number) if "_" not in number else math.nan  # Python reads "1_0" as 10
    except ValueError:
        return None
    return None if not math.isfinite(value) else value / 100.0 if number != text else value
