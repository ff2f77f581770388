"""Soft accuracy of VQAv2, TextVQA and VizWiz: agreement with ten people (Antol et al., ICCV 2015)."""

from __future__ import annotations

import re

from vlmprune.scoring.verdict import UNPARSED, Expected, Verdict

_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(_WORDS)}
_ARTICLES = {"a", "an", "the"}
_NEEDED = 3  # people who have to agree for the full score
# The contractions that the official evaluation knows; a word with one apostrophe left out is read as one of them.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_WRITTEN = {
    word[: at.start()] + word[at.end() :]: word for word in _CONTRACTIONS.split() for at in re.finditer("'", word)
}  # "couldnt've" and "couldn'tve" -> "couldn't've"


def vqa(reply: str, expected: Expected) -> Verdict:
    """The mean, over the people, of min(1, how many of the others gave this answer / 3).

    Every answer is normalised, also where all people agree (the official script leaves those alone, lmms-eval does as
    here). Fewer than four people cannot have three others: then all others have to agree, and one reference alone is
    compared as it is.
    """
    found = normalise(reply)
    if not found:
        return UNPARSED
    same = [normalise(answer) == found for answer in expected.answers]
    others = len(same) - 1
    if others < 1:
        return Verdict(found, float(any(same)))
    needed = min(_NEEDED, others)
    return Verdict(found, sum(min(1.0, (sum(same) - own) / needed) for own in same) / len(same))


def normalise(text: str) -> str:
    """An answer without punctuation and articles, numbers up to ten in digits, contractions with their apostrophe."""
    text = _without_signs(re.sub(r"[\n\t]", " ", text).strip())
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_WRITTEN.get(word, word) for word in words if word not in _ARTICLES)


def _without_signs(text: str) -> str:
    """Signs become spaces, or nothing where they stand beside a space or the text has a comma in a number."""
    joined = re.search(r"\d,\d", text) is not None
    out = text
    for sign in _SIGNS:
        beside = f"{sign} " in text or f" {sign}" in text
        out = out.replace(sign, "" if beside or joined else " ")
    return re.sub(r"\.(?!\d)", "", out)
