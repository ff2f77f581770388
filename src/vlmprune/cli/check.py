"""`vlmprune check`: what a method or an adapter owes its caller."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import vlmprune
from vlmprune.cli.shell import typer
from vlmprune.cli.words import MODEL, UNSOUND, quiet
from vlmprune.core.errors import Option, UserError
from vlmprune.core.extras import check_packages


def check(
    subject: Annotated[
        str | None,
        typer.Argument(
            help="A method, FILE.py:Class, or a method with options, without a budget; or a model, whose adapter is "
            "checked on it: a local folder, a hub id or an embedded model's name."
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(help="Instead of a method, an adapter: FILE.py:Adapter, FILE.py, or the name of a family."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Run this check only, by its name in `vlmprune list checks`. May be repeated."),
    ] = None,
    on: Annotated[list[str] | None, typer.Option(help="Only this tiny model. May be repeated. Default: all.")] = None,
    model: Annotated[
        str | None, typer.Option(help=f"For a method: the model to check on, instead of the tiny ones. {MODEL}")
    ] = None,
    goldens: Annotated[Path | None, typer.Option(help="For a method, a folder of recorded inputs and outputs.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print every outcome as JSON.")] = False,
) -> None:
    """Check all that a method, or an adapter, owes its caller, on tiny models.

    The exit code is 1 if a check fails. A method is checked on a tiny model of every family, an adapter on those that
    are declared for it. It takes a minute or two, and needs neither network nor files. `--only fidelity` checks
    recorded cases only.
    """
    check_packages("check")
    from vlmprune.testing.check import FAILED, as_json, as_text

    quiet()
    given: dict[str, Any] = {"on": on, "model": model, "goldens": goldens}
    if (subject is None) == (family is None):
        raise UserError("Give a method or a model to check, or an adapter as ", Option("family"), ": one of them.")
    if family is not None:
        name, outcomes = _check_family(family, only, **given)
    elif _is_model(str(subject)):
        name, outcomes = _check_model(str(subject), only, **given)
    else:
        name, outcomes = _check_method(str(subject), only, **given)
    typer.echo(as_json(outcomes) if json else as_text(name, outcomes))
    if any(outcome.status == FAILED for outcome in outcomes):
        raise typer.Exit(UNSOUND)


Found = tuple[str, list[Any]]  # what was checked, and the outcomes


def _is_model(text: str) -> bool:
    """Whether a model is meant, and not a method: a folder, a hub id, or an embedded model of this name."""
    from vlmprune.assets import embedded_names

    hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) is not None and not text.endswith(".py")
    return text not in vlmprune.METHODS and (text in embedded_names() or Path(text).expanduser().is_dir() or hub)


def _check_method(
    text: str, only: list[str] | None, on: list[str] | None, model: str | None, goldens: Path | None
) -> Found:
    from vlmprune.testing.check import method_of, run_checks
    from vlmprune.testing.goldens import FIDELITY, check_goldens

    asked = method_of(text)
    if only and FIDELITY in only and goldens is None:
        raise UserError("The check 'fidelity' needs recorded cases: give ", Option("goldens"), ".")
    others = [name for name in only or () if name != FIDELITY]
    outcomes: list[Any] = []
    if others or not only:
        outcomes += run_checks(asked, _grounds(on, model), others or None)
    if goldens is not None and (not only or FIDELITY in only):
        outcomes += check_goldens(asked, goldens)
    return asked.name, outcomes


def _check_family(
    text: str, only: list[str] | None, on: list[str] | None, model: str | None, goldens: Path | None
) -> Found:
    from vlmprune.testing import run_adapter_checks

    if model is not None:
        raise UserError(
            Option("family"), " is checked on its tiny models: to check the adapter of a model on this model, "
            f"give the model alone: vlmprune check {shlex.quote(model)}."
        )  # fmt: skip
    _no_goldens(goldens)
    return text, list(run_adapter_checks(text, on, only))


def _check_model(
    text: str, only: list[str] | None, on: list[str] | None, model: str | None, goldens: Path | None
) -> Found:
    if on or model is not None:
        name = Option("model" if on is None else "on")
        raise UserError(f"{text!r} is a model, whose adapter is checked on it alone: leave out ", name, ".")
    _no_goldens(goldens)
    check_packages("doctor")
    from vlmprune.doctor.ground import ground_of
    from vlmprune.testing import run_model_checks
    from vlmprune.testing.check import ADAPTER_CHECKS, chosen_checks

    chosen_checks(only, ADAPTER_CHECKS)  # before the model is loaded
    return text, list(run_model_checks(ground_of(text, option=""), only))


def _no_goldens(goldens: Path | None) -> None:
    if goldens is not None:
        raise UserError("Recorded cases are of methods: leave out ", Option("goldens"), ".")


def _grounds(names: list[str] | None, model: str | None) -> Any:
    """Tiny models, or one of the user's."""
    from vlmprune.testing import ground, grounds

    if model is None:
        return [ground(name) for name in dict.fromkeys(names)] if names else grounds()
    if names:
        raise UserError(Option("on"), " and ", Option("model"), " contradict each other: give one of them.")
    check_packages("doctor")
    from vlmprune.doctor.ground import ground_of

    return [ground_of(model)]
