"""The question as words: which of them say what it is about."""

from __future__ import annotations

import re

EMPTY = "What do you see in this image?"  # asked where the question is empty
HEADING = "Question:"
BOILERPLATE = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
)
FUNCTION_WORDS = frozenset(
    {
        *(
            "a",
            "an",
            "the",
            "is",
            "are",
            "was",
            "were",
            "be",
            "been",
            "being",
            "have",
            "has",
            "had",
            "do",
            "does",
            "did",
        ),
        *("i", "you", "he", "she", "it", "we", "they", "what", "which", "who", "where", "when", "why", "how"),
        *("and", "or", "but", "so", "if", "then", "question", "answer"),
        *("to", "for", "with", "by", "from", "at", "into", "onto", "upon"),
    }
)


def keywords(text: str) -> str:
    """The words of a text that are not function words, with spaces between; the text itself where none is left.

    MMTok's rule: the two sentences with which LLaVA's benchmarks end a question go first; words are runs of letters,
    digits and underscores; "this", "that", "my", "of", "in" and "on" stay.
    """
    asked = text
    for sentence in BOILERPLATE:
        asked = asked.replace(sentence, "")
    kept = [word for word in re.findall(r"\b\w+\b", asked) if word.lower() not in FUNCTION_WORDS]
    return " ".join(kept) or text


def content_words(text: str) -> list[str]:
    """The question's `keywords`, as words."""
    return keywords(text.strip() or EMPTY).split()


def with_heading(text: str) -> list[str]:
    """All words of the question, after "Question:"."""
    return [HEADING, *text.split()]
