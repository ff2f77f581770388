"""MathVista (Lu et al., ICLR 2024): replies that are a bare answer are read by rule; the others need a judge.

The benchmark has a language model extract the answer from any reply that is not bare. Where it does not name an option,
the benchmark takes the option whose spelling is nearest, so that every reply chooses something; that is not done here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from vlmprune.scoring.verdict import LETTERS, UNPARSED, Expected, Verdict

_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?|\(([A-Za-z])\).*", re.DOTALL)
_QUOTED = re.compile(r'The answer is "(.*)"\.')


def mathvista(reply: str, expected: Expected) -> Verdict:
    """Right where the reply is the bare answer. The facts `answer_type` and `precision` say what is asked.

    `answer_type` is "integer", "float" (rounded to `precision` decimals), "list" or "text"; without it, it is what the
    answer is. A question with options asks for one of them: its letter, "(B)", "(B) text", or its text.
    """
    found = extract_bare(reply, expected)
    if found is None:
        return UNPARSED
    return Verdict(found, float(found in [extract_bare(answer, expected) for answer in expected.answers]))


def extract_bare(text: str, expected: Expected) -> str | None:
    """A bare answer in the form that is compared; None where the text is not one."""
    text = text.strip()
    if quoted := _QUOTED.search(text):
        text = quoted[1].strip()
    return _option(text, expected.options) if expected.options else _FORMS[_asked(expected)](text, expected)


def _option(text: str, options: tuple[str, ...]) -> str | None:
    letters = LETTERS[: len(options)]
    if text in options:
        return letters[options.index(text)]
    match = _LETTER.fullmatch(text)
    letter = (match[1] or match[2]).upper() if match else ""
    return letter if letter and letter in letters else None


def _asked(expected: Expected) -> str:
    if (given := expected.facts.get("answer_type", "")) in _FORMS:
        return given
    answer = next(iter(expected.answers), "")
    shapes = {"integer": r"-?\d+", "float": r"-?\d*\.\d+", "list": r"\[.*\]"}
    return next((name for name, shape in shapes.items() if re.fullmatch(shape, answer)), "text")


def _integer(text: str, expected: Expected) -> str | None:
    value = _number(text)
    return None if value is None else str(int(value))


def _float(text: str, expected: Expected) -> str | None:
    value = _number(text)
    if value is None:
        return None
    answer = next(iter(expected.answers), "")
    decimals = expected.facts.get("precision") or len(answer.partition(".")[2])
    return str(round(value, int(decimals)))


def _list(text: str, expected: Expected) -> str | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return str(found) if isinstance(found, list) else None


def _text(text: str, expected: Expected) -> str | None:
    return text or None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", text) else None


_FORMS: dict[str, Callable[[str, Expected], str | None]] = {
    "integer": _integer,
    "float": _float,
    "list": _list,
    "text": _text,
}
