"""All checks of an adapter, one after another: on the tiny models that are declared for it, or on one model."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence

from vlmprune.core.errors import UserError
from vlmprune.models import adapter_for
from vlmprune.models.base import Adapter
from vlmprune.testing.adapter_subject import AdapterSubject
from vlmprune.testing.adapters import Declared, adapter_of, declared_for, standing_in
from vlmprune.testing.check import ADAPTER_CHECKS, FAILED, SKIPPED, Check, Outcome, ask, chosen_checks, in_words
from vlmprune.testing.subject import Ground, tiny_ground


def run_adapter_checks(
    adapter: Declared | str, on: Sequence[str] | None = None, only: Sequence[str] | None = None
) -> Iterator[Outcome]:
    """What each check of an adapter finds on tiny models.

    Args:
        adapter: as `adapter_of` gives it, or as `--family` takes it.
        on: names of some of its tiny models; all without it.
        only: names of checks; all without it.
    """
    declared = (adapter_of(adapter) if isinstance(adapter, str) else adapter).on(on)
    checks = chosen_checks(only, ADAPTER_CHECKS)
    command = f"vlmprune check --family {shlex.quote(declared.written)}"
    yield from _run(checks, declared, _built(declared), command)


def run_model_checks(ground: Ground, only: Sequence[str] | None = None) -> Iterator[Outcome]:
    """What each check finds on a user's model, of the adapter that it gets."""
    declared = declared_for(type(adapter_for(ground.model)))
    command = f"vlmprune check {shlex.quote(ground.name)}"
    yield from _run(chosen_checks(only, ADAPTER_CHECKS), declared, [ground], command)


def _built(declared: Declared) -> Iterator[Ground]:
    for name, family in declared.families.items():
        try:
            yield tiny_ground(name, family)
        except Exception as error:  # whatever a declaration of somebody else raises
            raise UserError(f"The tiny model {name!r} cannot be built as it is declared: {in_words(error)}.") from error


def _run(checks: Sequence[Check], declared: Declared, grounds: Iterable[Ground], command: str) -> Iterator[Outcome]:
    subjects, failed = [], set[str]()
    for ground in grounds:
        subjects.append(AdapterSubject(declared, ground))
        wrong = set[str]()
        for one in checks:
            if one.of == "family":
                yield _asked(one, subjects[-1:], wrong, command)
        failed |= wrong
    for one in checks:
        if one.of == "families":
            yield _asked(one, subjects, failed, command)


def _asked(one: Check, subjects: list[AdapterSubject], failed: set[str], command: str) -> Outcome:
    """One outcome; `failed` are the checks that failed, or were left out since one did, to which it may add itself."""
    ground = subjects[0].ground if one.of == "family" else None
    if broken := [name for name in one.after if name in failed]:
        failed.add(one.name)
        words = f"it rests on the check {broken[0]!r}, which fails or is left out as well"
        return Outcome(
            one.name, None if ground is None else ground.name, SKIPPED, words, f"{command} --only {one.name}"
        )
    with standing_in(subjects[0].cls):
        outcome = ask(one, subjects if ground is None else subjects[0], command, ground)
    if outcome.status == FAILED:
        failed.add(one.name)
    return outcome


def check_adapter(
    adapter: type[Adapter] | str, *, on: Sequence[str] | None = None, only: Sequence[str] | None = None
) -> list[Outcome]:
    """Run the checks of an adapter on the tiny models that are declared for it, without network.

    Args:
        adapter: the class, for which vlmprune has tiny models; a family's name; or `FILE.py:Adapter`.
        on: names of some of its tiny models; all without it.
        only: names of `ADAPTER_CHECKS`; all without it.

    Returns:
        What each check found.

    Raises:
        AssertionError: checks failed; a line for each.
        UserError: there is no such adapter, tiny model or check.
    """
    declared = adapter_of(adapter) if isinstance(adapter, str) else declared_for(adapter)
    outcomes = list(run_adapter_checks(declared, on, only))
    failed = [str(outcome) for outcome in outcomes if outcome.status == FAILED]
    if failed:
        raise AssertionError(f"{len(failed)} checks of {declared.written} failed:\n" + "\n".join(failed))
    return outcomes
