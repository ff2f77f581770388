"""MATH-Vision's own rule (Wang et al., NeurIPS 2024 Datasets and Benchmarks): finds the final answer and compares it.

It is what the benchmark's evaluation script and lmms-eval's `mathvision_standard_eval` do, but for one thing: they
evaluate formulas with latex2sympy, here `scoring.latex` does, which knows numbers, fractions, roots, powers and pi.
"""

from __future__ import annotations

import re

from vlmprune.scoring.latex import value_of
from vlmprune.scoring.verdict import LETTERS, UNPARSED, Expected, Verdict

_CHOICES = "ABCDE"
_FLAGS = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")
_UNITS = ("{units}", "units", "{km}", "km", "{m}^3", "m^3")
_DROPPED = ("\\,", "\\text", "\\mbox", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\!", "\\$", "$", "\\%")


def mathvision(reply: str, expected: Expected) -> Verdict:
    """Right where the final answer is the expected one: its letter, its option's text, or the same value.

    Values are the same when they round to the same two decimals. The answer is what is in the last \\boxed{}, else what
    follows a phrase such as "the answer is", else the whole reply; text after its last equals sign where it has one.
    """
    found = extract_final(reply)
    if not found:
        return UNPARSED
    targets = [text for answer in expected.answers for text in _targets(answer, expected.options)]
    right = any(_same(found, target.lower()) for target in targets)
    return Verdict(found if right or _is_answer(found, expected) else None, float(right))


def _targets(answer: str, options: tuple[str, ...]) -> list[str]:
    """The answer, and the text of the option whose letter it is."""
    if answer in tuple(LETTERS[: len(options)]):
        return [answer, options[LETTERS.index(answer)]]
    return [answer]


def _is_answer(found: str, expected: Expected) -> bool:
    """Whether it is of the asked kind: an option, a value, or a tuple; prose is not."""
    names = [*LETTERS.lower()[: len(expected.options)], *(text.lower() for text in expected.options)]
    values = _parts(found) or [found]
    return found in names or all(value_of(value) is not None for value in values)


def extract_final(reply: str) -> str:
    """The final answer, in lower case without spaces and units; "" where there is none."""
    text = _letter(reply.strip())
    if value_of(last := text.rpartition("is ")[2].rstrip(".")) is not None:
        text = last
    text = _after_phrase(text) if "oxed{" not in text else "\\boxed{" + text.rpartition("oxed{")[2]
    text = _cleaned(_in_box(text.lower().replace("{}", "")))
    for letter in _CHOICES.lower():
        text = text.replace(f"({letter})", letter).replace(f"{{{letter}}}", letter)
    return text.rstrip(".").lstrip(":").strip()


def _letter(text: str) -> str:
    """A letter at the end of the last sentence, or alone on the first line, is the answer."""
    for letter in _CHOICES:
        ends = (f" {letter}.", f" ({letter}).")
        starts = (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")
        if text.endswith(ends) or text.startswith(starts):
            text = letter
    return text


def _after_phrase(text: str) -> str:
    for flag in (spelled for phrase in _FLAGS for spelled in (phrase, phrase.capitalize())):
        if flag in text:
            text = text.rpartition(flag)[2].strip().partition("\n")[0].partition(". ")[0]
    return text


def _in_box(text: str) -> str:
    """What is in the box, up to the brace that closes it, and after the last sign of equality."""
    box = re.findall(r"oxed{(.*)}", text, flags=re.DOTALL)
    text = box[-1] if box else text
    if "}" in text and not 0 <= text.find("{") < text.find("}"):
        text = text.partition("}")[0]
    return text.rpartition("=")[2].rpartition("\\approx")[2]


def _cleaned(text: str) -> str:
    text = text.replace(" ", "").replace("\n", "").replace("∞", "\\infty").replace("\\\\", "\\")
    for dropped in (*_DROPPED, *_UNITS):
        text = text.replace(dropped, "")
    return f"0{text}" if text.startswith(".") else text


def _same(found: str, target: str) -> bool:
    if not found.strip() or not target.strip():
        return False
    if found.strip() == target.strip():
        return True
    ours, theirs = _parts(found), _parts(target)
    if ours or theirs:
        return len(ours) == len(theirs) and found[0] == target[0] and all(map(_same_value, ours, theirs))
    return _same_value(found, target)


def _same_value(first: str, second: str) -> bool:
    one, other = value_of(first), value_of(second)
    if one is None or other is None:
        return first == second
    return round(one, 2) == round(other, 2)


def _parts(text: str) -> list[str]:
    """The members of a tuple or list, "(1,2)" or "[1,2]"; none for other text."""
    if len(text) < 2 or (text[0], text[-1]) not in (("(", ")"), ("[", "]")) or "," not in text:
        return []
    return [part.strip() for part in text[1:-1].split(",")]
