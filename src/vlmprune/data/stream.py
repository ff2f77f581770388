"""The entries of a JSON file, one at a time, however large the file is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vlmprune.core.errors import UserError

_CHUNK = 1 << 16  # characters


def json_rows(path: Path) -> Iterator[tuple[str | None, Any]]:
    """The values of a list, with None, or those of an object, each with its key.

    Raises:
        UserError: the file is not JSON, or neither a list nor an object.
    """
    with path.open(encoding="utf-8-sig") as file:
        source = _Source(file, path)
        opening = source.next_sign()
        if opening not in ("[", "{"):
            raise UserError(f"{str(path)!r} holds no rows: it must be a JSON list or object.")
        source.take(opening)
        closing = "]" if opening == "[" else "}"
        while source.next_sign() != closing:
            key: str | None = None
            if opening == "{":
                key = source.key()
                source.take(":")
            yield key, source.value()
            if source.next_sign() != closing:
                source.take(",")


class _Source:
    """The part of a file that is being read: a value is parsed as soon as all of it is there."""

    def __init__(self, file: IO[str], path: Path) -> None:
        self.file, self.path = file, path
        self.text, self.start, self.before, self.ended = "", 0, 0, False

    def next_sign(self) -> str:
        """The next character that is no blank; "" at the end."""
        while True:
            while self.start < len(self.text):
                if not self.text[self.start].isspace():
                    return self.text[self.start]
                self.start += 1
            if not self._more():
                return ""

    def take(self, sign: str) -> None:
        found = self.next_sign()
        if found != sign:
            raise self._broken(f"{sign!r} expected, {found!r} found" if found else "it ends too early")
        self.start += 1

    def key(self) -> str:
        if (found := self.next_sign()) != '"':
            raise self._broken(f"a name expected, {found!r} found" if found else "it ends too early")
        return str(self.value())

    def value(self) -> Any:
        """The next value. A number or word at the end of what has been read may go on, so it is read twice."""
        self.next_sign()
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.start)
            except ValueError as error:
                if not self._more():
                    raise self._broken(getattr(error, "msg", str(error))) from None
                continue
            if end == len(self.text) and not self.ended and not isinstance(value, dict | list | str):
                self._more()
                continue
            self.start = end
            return value

    def _more(self) -> bool:
        """Read on, as much again as is still unread, so that a large value is not parsed often."""
        rest = self.text[self.start :]
        self.before += self.start
        piece = self.file.read(max(_CHUNK, len(rest)))
        self.text, self.start = rest + piece, 0
        self.ended = not piece
        return bool(piece)

    def _broken(self, why: str) -> UserError:
        return UserError(f"{str(self.path)!r} is not JSON: {why} at character {self.before + self.start + 1:,}.")
