"""Which values of the parameters a test runs with by default, where there are many; with the others it is `slow`.

A test on every family and every method has hundreds of cases. By default it runs with enough of them that each value
of each parameter occurs; the others run with `pytest -m slow` (in `.ci/run`). The choice needs no list: it follows from
the names of the cases, spread over the combinations, and is the same on every machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import pytest

FEW = 12  # cases up to which a test runs with all of them


def beyond_cover(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The cases that add no value of a parameter to those before them, of the tests that have more than a few."""
    cases: dict[tuple[str, str], list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            name = f"{item.cls.__name__}.{item.originalname}" if item.cls else item.originalname
            cases.setdefault((str(item.path), name), []).append(item)
    beyond: list[pytest.Item] = []
    for of_test in cases.values():
        if len(of_test) > FEW:
            beyond += _beyond(of_test)
    return beyond


def _values(case: pytest.Function) -> Iterator[tuple[str, object]]:
    """The value of each parameter as it is written, or its place in the list where that tells nothing."""
    for name, value in case.callspec.params.items():
        text = repr(value)
        yield name, case.callspec.indices[name] if " at 0x" in text else text


def _beyond(cases: list[pytest.Function]) -> list[pytest.Function]:
    seen: set[tuple[str, object]] = set()
    found = []
    for case in sorted(cases, key=lambda case: (zlib.crc32(case.name.encode()), case.name)):
        values = set(_values(case))
        if values <= seen:
            found.append(case)
        seen |= values
    return found
