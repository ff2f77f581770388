"""`vlmprune tune`: which method at which budget meets a target on the user's own pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from vlmprune.cli.shell import typer
from vlmprune.cli.words import DEVICE, DTYPE, FORCE, INTERRUPTED, MODEL, TEXT_TOWER, UNSOUND, quiet
from vlmprune.core.extras import check_packages


def tune(
    model: Annotated[str, typer.Argument(help=MODEL)],
    images: Annotated[Path, typer.Option(help="Folder with your pictures.")],
    questions: Annotated[
        Path | None,
        typer.Option(
            help="A .txt file with a question a line, each asked about every picture; or a data file whose rows have "
            "a question and may name an image. Default: a description of each picture."
        ),
    ] = None,
    latency: Annotated[
        str | None, typer.Option(help="The target: a time at most, as 300ms or 0.3s; of these the most loyal.")
    ] = None,
    loyalty: Annotated[
        float | None,
        typer.Option(help="The target: agreement with the unpruned answers at least, as 0.98; of these the fastest."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Candidates, separated by commas: methods or recipes. Default: nine methods that differ."),
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Their budgets, separated by commas. Default: 0.5,0.333,0.222,0.111.")
    ] = None,
    agreement: Annotated[
        str | None,
        typer.Option(
            help="How loyalty is counted: answers (equal ones) or words (in common). Default: answers with "
            "--questions, words without."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(help="Questions at most, drawn from all pictures.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(help="Length of an answer, in tokens, at most.")] = 64,
    timed_tokens: Annotated[
        int, typer.Option(help="The time is counted up to this new token; 1 is the time to the first token.")
    ] = 1,
    out: Annotated[
        Path, typer.Option(help="Folder for the measurements. The same command continues an interrupted search there.")
    ] = Path("results-tune"),
    seed: Annotated[int, typer.Option(help="Seed of the questions' order and of methods that draw.")] = 0,
    device: Annotated[str | None, typer.Option(help=DEVICE)] = None,
    dtype: Annotated[str | None, typer.Option(help=DTYPE)] = None,
    text_tower: Annotated[str | None, typer.Option(help=TEXT_TOWER)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures, as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help=FORCE)] = False,
) -> None:
    """Find the method and budget that meet a target on your pictures: a time, or agreement with the unpruned model.

    All candidates are measured on a few questions, the better half on more, and the last three on all. The exit code is
    1 where none meets the target.
    """
    check_packages("tune")
    from vlmprune.tune.target import Target, parse_latency

    target = Target(None if latency is None else parse_latency(latency), loyalty)
    given: dict[str, Any] = {"questions": questions, "limit": limit, "max_new_tokens": max_new_tokens}
    given |= {"timed_tokens": timed_tokens, "agreement": agreement, "seed": seed, "device": device, "dtype": dtype}
    found = _search(model, images, target, methods, keep, {**given, "text_tower": text_tower}, out, force)
    typer.echo(json.dumps(found.facts(), indent=1, ensure_ascii=False, default=str) if as_json else _words(found, out))
    if not found.met:
        raise typer.Exit(UNSOUND)


def _search(
    model: str,
    images: Path,
    target: Any,
    methods: str | None,
    keep: str | None,
    given: dict[str, Any],
    out: Path,
    force: bool,
) -> Any:
    from rich.console import Console

    from vlmprune.bench.console import progress_bars
    from vlmprune.bench.plan import split_methods
    from vlmprune.cli.words import keeps_of
    from vlmprune.tune.search import Wish
    from vlmprune.tune.search import tune as search

    if methods is not None:
        given["methods"] = split_methods(methods)
    if keep is not None:
        given["keeps"] = keeps_of(keep)
    quiet()
    try:
        with progress_bars(Console(stderr=True)) as progress:
            return search(Wish(model, images, target, **given), out, progress, force=force)
    except KeyboardInterrupt:
        typer.echo(f"Interrupted: what is measured is in {out}, and the same command continues from there.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _words(found: Any, out: Path) -> str:
    from vlmprune.tune import told

    refused = [f"Left out: {method}: {why}." for method, why in found.refused.items()]
    use = ["Use it:", *(f"  {line}" for line in told.usage(found))] if found.met else []
    parts = [*told.table(found), "", told.meaning(found), *refused, "", told.verdict(found), *use]
    return "\n".join([*parts, f"All figures: {out / 'tune' / 'found.json'}"])
