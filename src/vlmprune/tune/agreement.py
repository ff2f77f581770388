"""How far an answer agrees with the one of the unpruned model."""

from __future__ import annotations

from collections.abc import Callable
from difflib import SequenceMatcher

ANSWERS, WORDS = "answers", "words"


def same_answer(answer: str, unpruned: str) -> float:
    """1.0 where it is the same but for spaces around it, else 0.0: the mean is the share of equal answers."""
    return float(answer.strip() == unpruned.strip())


def same_words(answer: str, unpruned: str) -> float:
    """Share of the words that both have in the same order: twice their number over the words of both together."""
    pair = answer.split(), unpruned.split()
    return SequenceMatcher(None, *pair, autojunk=False).ratio() if any(pair) else 1.0


AGREEMENT: dict[str, Callable[[str, str], float]] = {ANSWERS: same_answer, WORDS: same_words}
