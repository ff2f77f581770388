"""What results call a method from a file: its name and a mark of the code, `scope#1a2b3c`.

The mark changes with the file, so that an edited method is measured again, and it tells an author's `divprune` from
that of vlmprune. The path is not part of it: the same file gives the same results wherever it is, and whoever calls it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from hashlib import sha256

from vlmprune.core.errors import UserError
from vlmprune.core.files import source_of, spelled
from vlmprune.core.method import Method
from vlmprune.core.recipe import Recipe, recipe

_DIGITS = 6


def marked(method: Method) -> str:
    """A method's name, with its mark where it comes from a file. Two classes of a file never have the same."""
    source = source_of(method)
    if source is None:
        return method.name
    return f"{method.name}#{sha256(f'{source.digest} {type(method).__name__}'.encode()).hexdigest()[:_DIGITS]}"


def recorded(parsed: Recipe) -> str:
    """A recipe as results name it: `str` of it with marks for paths."""
    return " > ".join(stage.named(marked) for stage in parsed.stages)


def code_of(parsed: Recipe) -> dict[str, str]:
    """SHA-256 of the file of each method that comes from one, by mark."""
    found = {marked(method): source_of(method) for method in _methods(parsed)}
    return {mark: source.digest for mark, source in found.items() if source is not None}


def files_of(parsed: Recipe) -> dict[str, str]:
    """File and class of each method that comes from a file, as recipes write them, by mark."""
    return {marked(method): spelled(method) for method in _methods(parsed) if source_of(method) is not None}


def runnable(text: str, code: Mapping[str, str], files: Mapping[str, str]) -> str | None:
    """What `recorded` made as a recipe string again; None where a file is gone or holds something else by now.

    Args:
        text: the recipe as results name it.
        code, files: of that recipe, as `code_of` and `files_of` give them; a file may be missing.
    """
    written = text
    for mark in code:
        if mark not in files:
            return None
        written = files[mark].join(re.split(rf"(?<![\w+.-]){re.escape(mark)}", written))
    try:
        return written if not code or recorded(recipe(written)) == text else None
    except UserError:
        return None


def _methods(parsed: Recipe) -> Iterator[Method]:
    """The methods of a recipe, also those around which others are."""
    for stage in parsed.stages:
        method: Method | None = stage.method
        while method is not None:
            yield method
            method = getattr(method, method.wraps) if method.wraps else None
