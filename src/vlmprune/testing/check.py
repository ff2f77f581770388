"""What a check is, how one is registered, and how those of methods are run."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.recipe import format_method, lacks_budget, recipe
from vlmprune.testing.subject import Ground, Subject

PASSED, FAILED, SKIPPED, NOTED = "passed", "failed", "skipped", "noted"


class Failed(AssertionError):
    """A method does not do what was expected: one clause, "expected ..., but ..."."""


class Skipped(Exception):
    """A check does not apply to a method: the reason."""


class Noted(Exception):
    """Nothing is wrong, but people should know."""


@dataclass(frozen=True)
class Check:
    """One thing that every method, or every adapter, owes its caller.

    Attributes:
        name: for `--only`.
        words: what is expected, in one line.
        function: raises `Failed`, `Skipped` or `Noted`.
        of: what it takes: "text", the method alone; "family", one `Subject`, so that it is asked for each family; or
            "families", a list of all `Subject`s.
        after: the checks on which it rests: where one of them fails, it is left out, as it would only repeat that.
    """

    name: str
    words: str
    function: Callable[[Any], None]
    of: str
    after: tuple[str, ...] = ()


CHECKS: dict[str, Check] = {}  # of methods
ADAPTER_CHECKS: dict[str, Check] = {}

Registered = Callable[[Callable[[Any], None]], Callable[[Any], None]]


def check(words: str, of: str = "family", after: Sequence[str] = (), into: dict[str, Check] = CHECKS) -> Registered:
    """Register a function as the check of its name."""

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        into[function.__name__] = Check(function.__name__, words, function, of, tuple(after))
        return function

    return register


@dataclass(frozen=True)
class Outcome:
    """What one check found, on one family where it is asked on families.

    Attributes:
        check: its name.
        family: the model's name; None for a check that is not about one model.
        status: "passed", "failed", "skipped" (it does not apply) or "noted".
        text: what was expected and what happened, or why it was skipped.
        alone: the command that runs this alone.
    """

    check: str
    family: str | None
    status: str
    text: str
    alone: str

    def __str__(self) -> str:
        place = f" on {self.family}" if self.family else ""
        again = f"; alone: {self.alone}" if self.status == FAILED else ""
        return f"{self.check}{place}: {self.text}{again}"


def ask(one: Check, given: Any, command: str, ground: Ground | None = None) -> Outcome:
    """Run one check.

    Args:
        given: what it takes, as its `of` says.
        command: that runs all checks of the method or the adapter.
        ground: the model, where it is asked about one.
    """
    alone, family = f"{command} --only {one.name}", None
    if ground is not None:
        family = ground.name
        alone += f" --{ground.option} {shlex.quote(family)}" if ground.option else ""
    status, text = PASSED, one.words
    try:
        one.function(given)
    except Failed as error:
        status, text = FAILED, str(error)
    except Skipped as error:
        status, text = SKIPPED, str(error)
    except Noted as error:
        status, text = NOTED, str(error)
    except Exception as error:  # a third party's code may raise anything
        status, text = FAILED, f"expected that {one.words}, but {in_words(error)} was raised"
    return Outcome(one.name, family, status, text, alone)


def quoted(method: Method) -> str:
    """How a shell is told of a method."""
    return shlex.quote(format_method(method))


def in_words(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}".rstrip(": ")


def method_of(text: str) -> Method:
    """The method that a name, `FILE.py:Class` or a stage of a recipe without a budget stands for.

    Raises:
        UserError: it is none, or several, or has a budget.
    """
    lacks = lacks_budget(text)
    stages = recipe(text, 0.3 if lacks else None).stages
    if len(stages) != 1 or (stages[0].method.budgeted and not lacks):
        raise UserError(f"{text!r} is not one method without a budget: the checks choose budgets themselves.")
    return stages[0].method


def chosen_checks(only: Sequence[str] | None, checks: Mapping[str, Check] = CHECKS) -> list[Check]:
    """The checks of these names, all without; UserError for an unknown one."""
    for name in only or ():
        if name not in checks:
            raise UserError(f"There is no check {name!r} of this kind: choose from {', '.join(checks)}.")
    return [checks[name] for name in only or checks]


def run_checks(method: Method | str, grounds: Iterable[Ground], only: Sequence[str] | None = None) -> Iterator[Outcome]:
    """What each check finds, one after another.

    Args:
        method: the object, or as it is written on a command line.
        grounds: the models it is run on (`vlmprune.testing.grounds`).
        only: names of checks; all without it.
    """
    asked = method_of(method) if isinstance(method, str) else method
    checks, command = chosen_checks(only), f"vlmprune check {quoted(asked)}"
    for one in checks:
        if one.of == "text":
            yield ask(one, asked, command)
    subjects = []
    for ground in grounds if any(one.of != "text" for one in checks) else ():
        subjects.append(Subject(asked, ground))
        for one in checks:
            if one.of == "family":
                yield ask(one, subjects[-1], command, ground)
    for one in checks:
        if one.of == "families":
            yield ask(one, subjects, command)


def as_json(outcomes: Sequence[Outcome]) -> str:
    """A list with one object for each outcome."""
    return json.dumps([asdict(outcome) for outcome in outcomes], indent=1)


def as_text(subject: str, outcomes: Sequence[Outcome]) -> str:
    """What failed and what people should know, one line each; then why checks were left out, and the count.

    Args:
        subject: the name of the method or the adapter.
    """
    lines = [f"FAIL {outcome}" for outcome in outcomes if outcome.status == FAILED]
    lines += [f"note {outcome}" for outcome in outcomes if outcome.status == NOTED]
    left_out: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        if outcome.status == SKIPPED:
            left_out.setdefault((outcome.check, outcome.text), []).append(outcome.family or "")
    for (name, reason), families in left_out.items():
        models = [family for family in families if family]
        where = f" on {len(models)} {'model' if len(models) == 1 else 'models'}" if models else ""
        lines.append(f"left out {name}{where}: {reason}")
    counts = Counter(outcome.status for outcome in outcomes)
    lines.append(f"{subject}: {counts[PASSED]} passed, {counts[FAILED]} failed, {counts[SKIPPED]} left out")
    return "\n".join(lines)
