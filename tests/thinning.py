"""Which cases of a test with many parameters run when: by default, with `-m slow`, or only with `-m exhaustive`.

A test on every family and every method has hundreds of cases. With enough of them each value of each parameter occurs:
these run by default, but of a test with families, of which there are some fifty, only `MOST`. `pytest -m slow` (in
`.ci/run`) runs the others of them, up to `MANY` cases, and all of a test that is marked `complete`. The rest runs with
`pytest -m exhaustive`: hours, for a release. The choice needs no list: it follows from the names of the tests and
cases, so that each test has other combinations, and is the same on every machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import pytest

FEW = 12  # cases up to which a test runs with all of them
MOST = 16  # cases of a test with families that run by default
MANY = 40  # further ones that run with the slow tests, or more where some value has not occurred by then


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
        needed, beyond = _parted(of_test)
        most = MOST if "family" in of_test[0].callspec.params else len(needed)
        late = needed[most:]
        complete = of_test[0].get_closest_marker("complete") is not None
        for number, case in enumerate([*late, *beyond]):
            case.add_marker("slow" if number < max(MANY, len(late)) or complete else "exhaustive")


def _values(case: pytest.Function) -> Iterator[tuple[str, object]]:
    """The value of each parameter as it is written, or its place in the list where that tells nothing."""
    for name, value in case.callspec.params.items():
        text = repr(value)
        yield name, case.callspec.indices[name] if " at 0x" in text else text


def _parted(cases: list[pytest.Function]) -> tuple[list[pytest.Function], list[pytest.Function]]:
    """Those that add a value of a parameter to the ones before them, and those that add none."""
    seen: set[tuple[str, object]] = set()
    needed, beyond = list[pytest.Function](), list[pytest.Function]()
    for case in sorted(cases, key=lambda case: (zlib.crc32(case.name.encode()), case.name)):
        values = set(_values(case))
        (beyond if values <= seen else needed).append(case)
        seen |= values
    return needed, beyond
