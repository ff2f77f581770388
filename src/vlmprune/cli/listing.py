"""`vlmprune list`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import vlmprune
from vlmprune.cli.shell import typer
from vlmprune.core.errors import Option, UserError

Row = tuple[str, str, str]


def list_(
    what: Annotated[
        str, typer.Argument(help="methods, presets, models, tasks, profiles or checks; or the name of a method.")
    ],
    words: Annotated[list[str] | None, typer.Argument(help="Only rows in which all these words occur.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Of methods, those that can act on this model; its weights are not loaded.")
    ] = None,
    needs: Annotated[
        list[str] | None,
        typer.Option(
            help="Of methods, those of this kind: inside, text, attention, encoder, merges, random or budget with =yes "
            "or =no. May be repeated."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The rows as JSON.")] = False,
) -> None:
    """List methods, presets, models (embedded ones, and families by model type), tasks, profiles, or checks.

    With the name of a method, its options and their defaults. vlmprune list methods --needs text=no names those whose
    choice does not depend on the question.
    """
    listings = {
        "methods": _list_methods,
        "presets": _list_presets,
        "models": _list_models,
        "tasks": _list_tasks,
        "profiles": _list_profiles,
        "checks": _list_checks,
    }
    for name, value in (("model", model), ("needs", needs)):
        if value and what != "methods":
            raise UserError(Option(name, value if isinstance(value, str) else value[0]), " is for methods alone.")
    if what not in listings:
        if what in vlmprune.METHODS and not words:
            return _method(what, as_json)
        raise UserError(
            f"{what!r} cannot be listed: choose one of {', '.join(listings)}, or give the name of a method."
        )
    rows = _chosen(model, needs or []) if what == "methods" and (model or needs) else listings[what]()
    asked = [word.lower() for word in words or []]
    rows = [row for row in rows if all(word in " ".join(row).lower() for word in asked)]
    if as_json:
        keys = ("name", "kind", "summary")
        return typer.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=1, ensure_ascii=False))
    if not rows:
        raise UserError("Nothing in this list is like that: ask for less.")
    names, kinds = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, kind, summary in rows:
        typer.echo(f"{name.ljust(names)}  {kind.ljust(kinds)}  {summary}")


def _chosen(model: str | None, needs: list[str]) -> list[Row]:
    """The methods that can act on a model and are of the kinds asked for."""
    from vlmprune.core.recipe import recipe
    from vlmprune.core.traits import traits_of, wanted_of
    from vlmprune.core.view import ModelInfo

    wanted = wanted_of(needs)
    adapter = None if model is None else _adapter(model)
    info = ModelInfo("llava", 24, 32, has_cls=True) if adapter is None else adapter.info  # LLaVA-1.5
    found = []
    for name, kind, summary in _list_methods():
        if kind == "broken":
            continue
        method = vlmprune.METHODS[name]()
        try:
            traits = traits_of(method, info)
            if adapter is not None:
                recipe(method, 0.5 if method.budgeted else None).check(info)
                if method.stage == "pixels" and not adapter.resizes:
                    continue
        except UserError:
            continue
        if all(traits.words()[key] == value for key, value in wanted.items()):
            found.append((name, kind, summary))
    return found


def _adapter(name: str) -> Any:
    """The adapter of a model of which only the config is read."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from vlmprune.assets import embedded_names, embedded_path
    from vlmprune.bench.load import find_model
    from vlmprune.models import adapter_for
    from vlmprune.models.weights import first_sentence

    find_model(name)
    try:
        config = AutoConfig.from_pretrained(str(embedded_path(name)) if name in embedded_names() else name)
        with torch.device("meta"):
            return adapter_for(AutoModelForImageTextToText.from_config(config))
    except UserError:
        raise
    except Exception as error:  # a config may be anything
        raise UserError(f"transformers makes no vision-language model of {name!r}: {first_sentence(error)}") from error


def _method(name: str, as_json: bool) -> None:
    """One method: what it is, what it is like, its options."""
    from vlmprune.core.method import Method
    from vlmprune.core.recipe import format_method
    from vlmprune.core.traits import options_of, traits_of
    from vlmprune.core.view import ModelInfo

    cls = vlmprune.METHODS[name]
    stage, summary = vlmprune.METHODS.about(name)
    given = options_of(cls)
    options = {key: format_method(value) if isinstance(value, Method) else value for key, value in given.items()}
    traits = traits_of(cls(), ModelInfo("llava", 24, 32, has_cls=True)).words()
    if as_json:
        about: dict[str, Any] = {"name": name, "kind": stage, "summary": summary, "traits": traits, "options": options}
        return typer.echo(json.dumps(about, indent=1, ensure_ascii=False, default=str))
    typer.echo(f"{name} ({stage}): {summary}")
    typer.echo("on LLaVA-1.5: " + ", ".join(f"{key} {value}" for key, value in traits.items()))
    for key, value in options.items():
        typer.echo(f"  {key}={value!r}")
    typer.echo(f"docs/methods.md says what each option means; vlmprune list presets {name} lists its presets.")


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
    others = [(name, found.verdict, found.words) for name, found in surveyed().items()]
    return [*embedded, *families, *others]


def _list_tasks() -> list[tuple[str, str, str]]:
    from vlmprune.tasks import built_in_tasks

    return [(task.name, task.dimension, f"{task.summary} ({task.metric.name})") for task in built_in_tasks().values()]


def _list_profiles() -> list[tuple[str, str, str]]:
    from vlmprune.bench.profiles import profiles

    return [(name, profile.protocol, profile.source) for name, profile in profiles().items()]
