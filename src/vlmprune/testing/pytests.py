"""The checks in tests: one call for all of them, or one test for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmprune.core.method import Method
from vlmprune.testing.check import CHECKS, FAILED, SKIPPED, Outcome, method_of, run_checks
from vlmprune.testing.families import FAMILIES
from vlmprune.testing.goldens import check_goldens
from vlmprune.testing.subject import grounds


def check_method(
    method: Method | str,
    *,
    families: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    goldens: Path | None = None,
) -> list[Outcome]:
    """Run the checks of a method on tiny models, without network or files.

    Args:
        method: the object, a name, or `FILE.py:Class`, without a budget.
        families: names of `FAMILIES`; all without it.
        only: names of `CHECKS`; all without it.
        goldens: a folder of recorded inputs and outputs (see `vlmprune.testing.goldens`).

    Returns:
        What each check found.

    Raises:
        AssertionError: checks failed; a line for each.
        UserError: there is no such method, family, check or folder.
    """
    asked = method_of(method) if isinstance(method, str) else method
    outcomes = list(run_checks(asked, grounds(families), only))
    if goldens is not None:
        outcomes += check_goldens(asked, goldens)
    failed = [str(outcome) for outcome in outcomes if outcome.status == FAILED]
    if failed:
        raise AssertionError(f"{len(failed)} checks of {asked.name} failed:\n" + "\n".join(failed))
    return outcomes


@dataclass(frozen=True)
class OneCheck:
    """A check of a method on the families that it needs, to be called in a test; skipped where it does not apply."""

    method: Method
    name: str
    families: tuple[str, ...]

    def __str__(self) -> str:
        family = self.families if len(self.families) == 1 else ()
        return "-".join((self.method.name, self.name, *family))

    def __call__(self) -> None:
        import pytest

        for outcome in run_checks(self.method, grounds(self.families), [self.name]):
            if outcome.status == SKIPPED:
                pytest.skip(str(outcome))
            assert outcome.status != FAILED, str(outcome)


def parametrize_with_checks(
    methods: Sequence[Method | str], families: Sequence[str] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator for a test with an argument `check`, which it calls: one test for each check and family.

    Args:
        methods: objects, names, or `FILE.py:Class`.
        families: names of `FAMILIES`; all without it.
    """
    import pytest

    asked = [method_of(method) if isinstance(method, str) else method for method in methods]
    named = tuple(families or FAMILIES)
    on: dict[str, list[tuple[str, ...]]] = {
        "text": [()],
        "family": [(family,) for family in named],
        "families": [named],
    }
    cases = [OneCheck(method, one.name, where) for method in asked for one in CHECKS.values() for where in on[one.of]]
    return pytest.mark.parametrize("check", cases, ids=str)
