"""The value of a number or formula as models and data sets write it, in plain text or LaTeX. Nothing is executed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

_LONGEST = 200  # characters; a longer text is not a final answer
_TOKEN = re.compile(r"\\[a-z]+|\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+|[-+*/:^(){}\[\]]")
_TIMES = {"*", "\\times", "\\cdot"}
_OVER = {"/", ":", "\\div"}  # a ratio is a quotient
_CLOSING = {"(": ")", "{": "}", "[": "]"}
_SYMBOLS = {"\\pi": math.pi}


def value_of(text: str) -> float | None:
    """The value of "80", "1,200", "3/4", "\\frac{3}{4}", "2\\sqrt{3}", "2\\pi+1"; None for any other text."""
    text = re.sub(r"\\left|\\right|\s|\\[,;!]", "", text.lower())
    tokens = _TOKEN.findall(text)
    if not tokens or len(text) > _LONGEST or "".join(tokens) != text:
        return None
    try:
        value = _Reader(tokens).whole()
    except (_NotOne, ZeroDivisionError, OverflowError):
        return None
    return value if math.isfinite(value) else None


class _NotOne(Exception):
    """The text is not a formula."""


class _Reader:
    """Reads sums of products of powers from left to right."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0

    @property
    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.next
        if not token or (wanted and token != wanted):
            raise _NotOne
        self.at += 1
        return token

    def whole(self) -> float:
        value = self.sum()
        if self.next:
            raise _NotOne
        return value

    def sum(self) -> float:
        value = self.product()
        while self.next in ("+", "-"):
            value += self.product() if self.take() == "+" else -self.product()
        return value

    def product(self) -> float:
        sign = 1.0
        while self.next in ("+", "-"):
            sign = -sign if self.take() == "-" else sign
        value = self.power()
        while True:
            if self.next in _TIMES:
                self.take()
                value *= self.signed(self.power)
            elif self.next in _OVER:
                self.take()
                value /= self.signed(self.power)
            elif self.next in ("(", "{") or self.next.startswith("\\"):  # "2\\sqrt{3}": a product without a sign
                value *= self.power()
            else:
                return sign * value

    def signed(self, read: Callable[[], float]) -> float:
        if self.next == "-":
            self.take()
            return -read()
        return read()

    def power(self) -> float:
        base = self.atom()
        if self.next != "^":
            return base
        self.take()
        value = base ** self.signed(self.power)
        if isinstance(value, complex):
            raise _NotOne
        return value

    def atom(self) -> float:
        token = self.take()
        if token in ("(", "{"):
            value = self.sum()
            self.take(_CLOSING[token])
            return value
        if token in ("\\frac", "\\dfrac", "\\tfrac"):
            return self.short() / self.short()
        if token == "\\sqrt":
            return self.root()
        if token in _SYMBOLS:
            return _SYMBOLS[token]
        if token[0].isdigit() or token[0] == ".":
            return float(token.replace(",", ""))
        raise _NotOne

    def root(self) -> float:
        degree = 2.0
        if self.next == "[":
            self.take()
            degree = self.sum()
            self.take("]")
        of = self.short()
        if of < 0:
            raise _NotOne
        return of ** (1 / degree)

    def short(self) -> float:
        """An argument: in braces, or one digit, as "\\frac12" has them."""
        token = self.next
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at] = token[1:]
            return float(token[0])
        return self.atom()
