"""What a cell of a row holds: text, a list, the right option, pictures."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlmprune.data.encoded import decode_base64, is_base64
from vlmprune.data.sample import BytesPicture, FilePicture, Picture

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER, TEXT, NUMBER = "letter", "text", "number"  # how a row may name its right option


class UnfitError(Exception):
    """Why a row is no sample, in words."""


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing; pandas writes a NaN for that."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value)


def as_text(value: Any) -> str:
    """A cell as text; "" for none. JSON's true and false are yes and no; 3.0, which pandas makes of 3, is 3."""
    if is_empty(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def as_list(value: Any) -> tuple[str, ...]:
    """A cell as texts: a list, a list of texts that is written as text ("['a', 'b']"), or one value."""
    if isinstance(value, str):
        value = _written_list(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(text for one in value if (text := as_text(one)))
    text = as_text(value)
    return (text,) if text else ()


def _written_list(text: str) -> Any:
    """The list that a text spells, or the text: "[1, 2]" may be an answer, and "['1', '2']" is two."""
    stripped = text.strip()
    if not (stripped.startswith("[") and stripped.endswith("]")):
        return text
    try:
        found = ast.literal_eval(stripped)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return found if all(isinstance(one, str) for one in found) else text


def as_options(value: Any) -> tuple[str, ...]:
    """The texts of the options in a list, or in an object by letter.

    Raises:
        UnfitError: their letters are not A, B, C, ... or there are too many.
    """
    if isinstance(value, Mapping):
        keys = "".join(str(key).strip("(). ").upper() for key in value)
        if keys != LETTERS[: len(value)]:
            raise UnfitError(f"its options have the names {', '.join(map(str, value))} instead of A, B, C, ...")
        value = list(value.values())
    options = as_list(value)
    if isinstance(value, list | tuple) and len(options) < len(value):
        raise UnfitError("one of its options is empty")
    if len(options) > len(LETTERS):
        raise UnfitError(f"it has {len(options)} options, more than there are letters")
    return options


def letter_of(answer: Any, options: Sequence[str], named: str = "") -> str:
    """The letter of the right option.

    Args:
        answer: its letter, its text, or its number from 0.
        options: texts of all.
        named: which of the three it is; "" to tell from the answer.

    Raises:
        UnfitError: it is none of the options, or may be one or another.
    """
    text = as_text(answer)
    found: dict[str, int] = {}
    if options.count(text) == 1:
        found[TEXT] = options.index(text)
    if (letter := text.strip("(). ").upper()) in tuple(LETTERS[: len(options)]):
        found[LETTER] = LETTERS.index(letter)
    if text.isascii() and text.isdigit() and int(text) < len(options):
        found[NUMBER] = int(text)
    if NUMBER in found and TEXT in found and isinstance(answer, str) and not named:
        del found[NUMBER]  # as a text, "2" is the option that says so
    if named:
        found = {name: place for name, place in found.items() if name == named}
    if not found:
        raise UnfitError(f"its answer {text!r} is none of its options")
    if len(set(found.values())) > 1:
        ways = " and ".join(f"the {name} of {LETTERS[place]}" for name, place in found.items())
        raise UnfitError(f"its answer {text!r} is {ways}")
    return LETTERS[next(iter(found.values()))]


def as_pictures(value: Any, folder: Path, name: str) -> list[Picture]:
    """The pictures of a cell: a path, base64, a data: URL, bytes, `{"bytes", "path"}`, or a list of these.

    Args:
        folder: that paths are relative to.
        name: of the sample, for errors.

    Raises:
        UnfitError: a picture is not there.
    """
    if is_empty(value):
        return []
    if isinstance(value, Mapping):
        return as_pictures(_of_mapping(value), folder, name)
    if isinstance(value, bytes):
        return [BytesPicture(lambda: value, name)]
    if hasattr(value, "read"):
        return [BytesPicture(value.read, name)]
    if isinstance(value, str):
        value = _written_list(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        if any(is_empty(one) for one in value):
            raise UnfitError("one of its pictures is empty")
        return [picture for one in value for picture in as_pictures(one, folder, name)]
    if not isinstance(value, str):
        raise UnfitError(f"its picture is a {type(value).__name__}")
    if is_base64(value):
        return [BytesPicture(partial(decode_base64, value), name)]
    return [FilePicture(file_at(value, folder, "picture"))]


def _of_mapping(value: Mapping[str, Any]) -> Any:
    """What `{"bytes", "path"}` stands for, as the library datasets writes a picture."""
    found = value.get("bytes") or value.get("path")
    if not found:
        raise UnfitError("its picture is empty" if {"bytes", "path"} & value.keys() else "its picture is an object")
    return found


def file_at(path: str, folder: Path, what: str) -> Path:
    """A file named in a row.

    Raises:
        UnfitError: it is not there.
    """
    if path.startswith(("http://", "https://")):
        raise UnfitError(f"its {what} {path!r} is on the web, and nothing is fetched: save it beside the data")
    try:
        if (found := folder / path).is_file():
            return found
    except (OSError, ValueError):  # a name that no file can have: too long, or with a NUL
        raise UnfitError(f"its {what} is neither a file nor base64") from None
    raise UnfitError(f"there is no {what} {str(found)!r}")
