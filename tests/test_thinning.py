"""Which cases of tests with many parameters run when (`thinning.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from thinning import FEW, MANY, MOST

CASES = """
import pytest

@pytest.mark.parametrize("a", range(20))
@pytest.mark.parametrize("b", range(30))
def test_large(a, b): ...

@pytest.mark.complete
@pytest.mark.parametrize("a", range(20))
@pytest.mark.parametrize("b", range(30))
def test_complete(a, b): ...

@pytest.mark.parametrize("a", range({few}))
def test_small(a): ...

@pytest.mark.parametrize("family", range(50))
def test_families(family): ...
"""
pytest_plugins = ["pytester"]


def collected(pytester: pytest.Pytester, marks: str) -> set[str]:
    out = pytester.runpytest_inprocess("--collect-only", "-q", "-m", marks, "-p", "no:cacheprovider").stdout
    return {line for line in out.lines if "::" in line}


def test_each_value_by_default_some_more_slow_and_the_rest_exhaustive(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_cases=CASES.format(few=FEW))
    pytester.makeini("[pytest]\nmarkers =\n    slow:\n    exhaustive:\n    complete:\n")
    pytester.makeconftest("from thinning import mark\ndef pytest_collection_modifyitems(items):\n    mark(items)\n")
    pytester.syspathinsert(Path(__file__).parent)
    default = collected(pytester, "not slow and not exhaustive")
    slow, exhaustive = collected(pytester, "slow"), collected(pytester, "exhaustive")
    assert not slow & exhaustive and not (slow | exhaustive) & default
    assert len(default | slow | exhaustive) == 2 * 600 + FEW + 50
    large = [case for case in default if "test_large" in case]
    found = [case.partition("[")[2].rstrip("]").split("-") for case in large]
    assert {b for b, _ in found} == set(map(str, range(30))) and {a for _, a in found} == set(map(str, range(20)))
    assert len(large) < 100 and sum("test_small" in case for case in default) == FEW
    assert sum("test_large" in case for case in slow) == MANY
    assert not any("test_complete" in case for case in exhaustive)
    parts = [sum("test_families" in case for case in part) for part in (default, slow, exhaustive)]
    assert parts == [MOST, 50 - MOST, 0] and min(parts[:2]) > 0, "no family is left to the exhaustive tests"
    chosen = [{case.partition("[")[2] for case in default if name in case} for name in ("test_large", "test_complete")]
    assert chosen[0] != chosen[1], "each test has combinations of its own"
