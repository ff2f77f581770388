"""`vlmprune run`: a question about pictures or a video, under one or several methods and budgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from vlmprune.cli.shell import typer
from vlmprune.cli.words import DEVICE, DTYPE, FORCE, MODEL, POSITION_IDS, TEXT_TOWER, quiet
from vlmprune.core.errors import Option, UserError
from vlmprune.core.extras import check_packages


def run(
    pictures: Annotated[
        list[Path],
        typer.Argument(
            help="A picture, a video, an animated GIF, or a folder with the frames of a video; or several of these."
        ),
    ],
    question: Annotated[str, typer.Option("--question", "-q", help="What to ask about it.")],
    model: Annotated[str, typer.Option(help=MODEL)] = "llava",
    method: Annotated[
        str | None, typer.Option(help="A method, FILE.py:Class, recipe or preset. Without it nothing is pruned.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Several of these, separated by commas; the unpruned model is asked too.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Share (0.222) or number (64) of visual tokens to keep; several, separated by commas. Of a video also "
            "of each frame (16/frame, or one for each: '[128, 64, 32]')."
        ),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Ask the unpruned model too.")] = False,
    each: Annotated[
        bool, typer.Option("--each", help="Ask about each picture of a folder by itself, not about a video of them.")
    ] = False,
    overlay: Annotated[
        Path | None,
        typer.Option(
            help="File for a picture of what became of the patches (.png, .jpg, .webp); for several pictures a folder."
        ),
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a video, spread evenly. Default: 8.")] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second of a video instead; with --frames at most so many.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the reply, in tokens, at most.")] = 128,
    positions: Annotated[str | None, typer.Option(help=POSITION_IDS)] = None,
    seed: Annotated[int, typer.Option(help="Seed of methods that draw.")] = 0,
    device: Annotated[str | None, typer.Option(help=DEVICE)] = None,
    dtype: Annotated[str | None, typer.Option(help=DTYPE)] = None,
    text_tower: Annotated[str | None, typer.Option(help=TEXT_TOWER)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The answers, tokens and times, as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help=FORCE)] = False,
) -> None:
    """Ask a model a question about a picture or a video, with or without pruning.

    With several methods, budgets or pictures, or with --compare, each answer is a row with its tokens and times.
    """
    check_packages("run")
    from vlmprune.ask.many import ask_each, rows, several
    from vlmprune.ask.run import Question, recipes_of
    from vlmprune.bench.plan import split_methods

    quiet()
    if method is not None and methods is not None:
        raise UserError(Option("method", method), " and ", Option("methods", methods), " both name methods: give one.")
    named = split_methods(methods) if methods is not None else () if method is None else (method,)
    recipes = recipes_of(named, budgets_of(keep), overlay)
    if compare and recipes == [None]:
        raise UserError(Option("compare", True), " needs a method to compare: add ", Option("method", "hiprune"), ".")
    asked = Question(question, frames, fps, max_new_tokens, positions, seed)
    paths, plain = several(pictures, each), compare or len(recipes) > 1
    about: dict[str, Any] = {"device": device, "dtype": dtype, "text_tower": text_tower, "force": force}
    found = ask_each(paths, asked, model, [None, *recipes] if plain else recipes, overlay, in_folder=each, **about)
    many = len(paths) > 1 or each
    facts = []
    for path, answers in found:
        facts.append({"picture": str(path), "answers": [one.facts() for one in answers]})
        if not as_json:
            lines = rows(path if many else None, answers) if plain or many else [answers[0].text]
            typer.echo("\n".join(lines))
    if as_json:
        typer.echo(json.dumps(facts if plain or many else facts[0]["answers"][0], indent=1, ensure_ascii=False))


def budgets_of(text: str | None) -> list[Any]:
    """Budgets separated by commas; those in brackets are one: the budgets of a video's frames."""
    from vlmprune.core.budget import parse_budget

    if text is None:
        return []
    if text.strip().startswith("["):
        return [parse_budget(text.strip())]
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise UserError(Option("keep", text), " has an empty budget: write budgets as 0.333,0.111.")
    return [parse_budget(word) for word in dict.fromkeys(words)]
