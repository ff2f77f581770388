"""What the docstring of a method must say, and how it is read. The page of methods is made by the same rules."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields

from vlmprune.core.method import EVERY_METHODS, Method

HEADINGS = ("Paper:", "Formula:", "Defaults")


def cost(cls: type[Method]) -> tuple[str, str]:
    """Time and memory of selecting, from the sentence "Time O(...), memory ...": its own, or its base's."""
    for owner in cls.__mro__:
        text = " ".join((owner.__dict__.get("__doc__") or "").split())
        found = re.search(r"Time (O\(.*?\)(?: [^,.]*)?)(?:, memory ([^.]*))?\.(?: |$)", text)
        if found:
            return found[1], found[2] or ""
    raise ValueError(f'{cls.name}: the docstring does not say "Time O(...), memory ..."')


def told(cls: type[Method]) -> dict[str, str]:
    """What the nearest docstring says of each option; those that every method has are told of elsewhere.

    Raises:
        ValueError: an option of which no docstring tells, or one told of that is not there.
    """
    found: dict[str, str] = {}
    for owner in cls.__mro__:
        if owner is not Method:
            for names, text in arguments(owner):
                found |= {name: text for name in names if name not in found}
    own = [field.name for field in fields(cls)]
    for name in own:
        if name not in found and name not in EVERY_METHODS:
            raise ValueError(f"{cls.name}: no docstring tells of the option {name!r}")
    if beyond := [name for name in found if name not in own]:
        raise ValueError(f"{cls.name} has no options {', '.join(beyond)}, of which a docstring tells")
    return found


def arguments(cls: type) -> Iterator[tuple[list[str], str]]:
    """The names of each entry under `Args` of a docstring, and its text."""
    for paragraph in inspect.cleandoc(cls.__dict__.get("__doc__") or "").split("\n\n"):
        if paragraph.startswith("Args:"):
            for entry in re.split(r"\n    (?=\w+(?:, \w+)*: )", paragraph)[1:]:
                names, _, text = entry.partition(": ")
                yield names.split(", "), text
