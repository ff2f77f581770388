"""Which cases of a test with many parameters run when: by default, with `-m slow`, or only with `-m exhaustive`.

A test on every family and every method has hundreds of cases. By default it runs with enough of them that each value
of each parameter occurs. `pytest -m slow` (in `.ci/run`) runs `MANY` more, and all of a test that is marked `complete`.
The rest runs with `pytest -m exhaustive`: hours, for a release. The choice needs no list: it follows from the names of
the tests and cases, so that each test has other combinations, and is the same on every machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import pytest

FEW = 12  # cases up to which a test runs with all of them
MANY = 100  # further ones that run with the slow tests


def mark(items: Iterable[pytest.Item]) -> None:
    """Mark as `slow` or `exhaustive` what is not run by default."""
    cases: dict[tuple[str, str], list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            name = f"{item.cls.__name__}.{item.originalname}" if item.cls else item.originalname
            cases.setdefault((str(item.path), name), []).append(item)
    for of_test in cases.values():
        if len(of_test) <= FEW:
            continue
        beyond = _beyond(of_test)
        complete = of_test[0].get_closest_marker("complete") is not None
        for number, case in enumerate(beyond):
            case.add_marker("slow" if number < MANY or complete else "exhaustive")


def _values(case: pytest.Function) -> Iterator[tuple[str, object]]:
    """The value of each parameter as it is written, or its place in the list where that tells nothing."""
    for name, value in case.callspec.params.items():
        text = repr(value)
        yield name, case.callspec.indices[name] if " at 0x" in text else text


def _beyond(cases: list[pytest.Function]) -> list[pytest.Function]:
    """The cases that add no value of a parameter to those before them."""
    seen: set[tuple[str, object]] = set()
    found = []
    for case in sorted(cases, key=lambda case: (zlib.crc32(case.name.encode()), case.name)):
        values = set(_values(case))
        if values <= seen:
            found.append(case)
        seen |= values
    return found
