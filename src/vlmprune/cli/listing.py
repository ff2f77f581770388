"""`vlmprune list`."""

from __future__ import annotations

from typing import Annotated

import vlmprune
from vlmprune.cli.shell import typer
from vlmprune.core.errors import UserError


def list_(what: Annotated[str, typer.Argument(help="methods, presets, models, tasks, profiles or checks.")]) -> None:
    """List methods, presets, models (embedded ones, and families by model type), tasks, profiles, or checks."""
    listings = {
        "methods": _list_methods,
        "presets": _list_presets,
        "models": _list_models,
        "tasks": _list_tasks,
        "profiles": _list_profiles,
        "checks": _list_checks,
    }
    if what not in listings:
        raise UserError(f"{what!r} cannot be listed: choose one of {', '.join(listings)}.")
    rows = listings[what]()
    names, kinds = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, kind, summary in rows:
        typer.echo(f"{name.ljust(names)}  {kind.ljust(kinds)}  {summary}")


def _list_checks() -> list[tuple[str, str, str]]:
    from vlmprune.testing import ADAPTER_CHECKS, CHECKS

    methods = [(one.name, "method", one.words) for one in CHECKS.values()]
    return [*methods, *((one.name, "adapter", one.words) for one in ADAPTER_CHECKS.values())]


def _list_methods() -> list[tuple[str, str, str]]:
    return [_method_row(name) for name in vlmprune.METHODS]


def _method_row(name: str) -> tuple[str, str, str]:
    try:
        return name, *vlmprune.METHODS.about(name)
    except UserError as error:  # of a package that is broken or claims another's name
        return name, "broken", error.typed


def _list_presets() -> list[tuple[str, str, str]]:
    from vlmprune.core.presets import PRESETS

    return [(name, preset.recipe, preset.source) for name, preset in PRESETS.items()]


def _list_models() -> list[tuple[str, str, str]]:
    from vlmprune.assets import embedded_names
    from vlmprune.models import FAMILIES, summary
    from vlmprune.models.surveyed import surveyed

    embedded = [(name, "embedded", "tiny, trained on a generated world, in the package") for name in embedded_names()]
    families = [(name, "family", summary(adapter)) for name, adapter in FAMILIES.items()]
    others = [(name, found.verdict, found.words) for name, found in surveyed().items() if name not in FAMILIES]
    return [*embedded, *families, *others]


def _list_tasks() -> list[tuple[str, str, str]]:
    from vlmprune.tasks import built_in_tasks

    return [(task.name, task.dimension, f"{task.summary} ({task.metric.name})") for task in built_in_tasks().values()]


def _list_profiles() -> list[tuple[str, str, str]]:
    from vlmprune.bench.profiles import profiles

    return [(name, profile.protocol, profile.source) for name, profile in profiles().items()]
