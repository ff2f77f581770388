"""The command line. Commands are thin; a user's mistake is answered by one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import vlmprune
from vlmprune.cli.analyze import analyze
from vlmprune.cli.bench import bench
from vlmprune.cli.check import check
from vlmprune.cli.demo import demo
from vlmprune.cli.listing import list_
from vlmprune.cli.run import run
from vlmprune.cli.serve import serve
from vlmprune.cli.shell import typer
from vlmprune.cli.tune import tune
from vlmprune.cli.words import (
    FORCE,
    JUDGE,
    JUDGE_MODEL,
    MODEL,
    OK,
    UNSOUND,
    USAGE,
    quiet,
)
from vlmprune.core.errors import UserError
from vlmprune.core.extras import check_packages

app = typer.Typer(
    name="vlmprune",
    help="Run vision-language models on a fraction of their visual tokens, and measure what it costs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"vlmprune {vlmprune.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command()(run)
app.command()(bench)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A result folder that vlmprune bench has written.")],
    published: Annotated[
        bool, typer.Option("--published", help="Also put the papers' printed figures beside those measured.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help=FORCE)] = False,
) -> None:
    """Write the tables, plots and HTML page of a result folder again. This needs no model."""
    check_packages("report")
    from vlmprune.report import build

    written = build(folder, force=force, published=published)
    for path in written:
        if path.name == "published.md":
            typer.echo(path.read_text(encoding="utf-8").partition("\n\n")[2])
    for path in written:
        typer.echo(str(path))


@app.command()
def score(
    task: Annotated[str, typer.Argument(help="A task that `vlmprune list tasks` names, or a file of yours.")],
    answers: Annotated[Path, typer.Argument(help="JSON lines, JSON, CSV, TSV or parquet with columns id and output.")],
    data: Annotated[Path | None, typer.Option(help="Folder with local copies of data sets; else the hub.")] = None,
    protocol: Annotated[
        str, typer.Option(help="By whose rules replies are read: plain, lmms, vlmevalkit...")
    ] = "plain",
    partial: Annotated[bool, typer.Option("--partial", help="Score what is answered, though not all is.")] = False,
    judge: Annotated[str | None, typer.Option(help=JUDGE)] = None,
    judge_model: Annotated[str | None, typer.Option(help=JUDGE_MODEL)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures, as JSON.")] = False,
) -> None:
    """Score answers that any tool has recorded, by the rules of a run. Neither a model nor the pictures are needed.

    Without a column id the answers are taken in the order of the data. A column response, prediction, pred, reply or
    text stands for output, and question_id, sample_id or index for id. A judge's answers are kept beside the file.
    """
    check_packages("score")
    from vlmprune.bench import recorded
    from vlmprune.bench.judging import judge_for
    from vlmprune.bench.protocols import get_protocol
    from vlmprune.bench.recorded_text import as_text
    from vlmprune.tasks import get_task
    from vlmprune.tasks.task import Place

    asked = get_task(task)
    judging = judge_for(judge, judge_model, answers.with_suffix(".judge.jsonl"))
    place = Place(data=None if data is None else data.expanduser())
    read = recorded.read_answers(answers.expanduser())
    scores = recorded.score_answers(asked, read, place, protocol=get_protocol(protocol), partial=partial, judge=judging)
    if judging is not None:
        typer.echo(f"Judge {judging.model}: {judging.cost}.", err=True)
    typer.echo(_json(recorded.as_json(scores)) if as_json else as_text(scores, f"{asked.name}: {answers}"))


def _json(content: Any) -> str:
    import json

    return json.dumps(content, indent=1, ensure_ascii=False)


app.command("list")(list_)


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help=MODEL)],
    picture: Annotated[
        Path | None, typer.Option(help="File for a drawing of a sample picture's token layout (.png, .jpg, .webp).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was found, as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help=FORCE)] = False,
) -> None:
    """Show where a model's visual tokens are and which methods work, and prove that pruning is exact on it.

    The proofs generate with a cache: for one prompt, for a batch with padding, and for a second turn. The exit code is
    1 if a proof or a method fails.
    """
    check_packages("doctor")
    from vlmprune.doctor import diagnose

    quiet()
    diagnosis = diagnose(model, picture, force=force)
    typer.echo(_json(diagnosis.facts()) if as_json else diagnosis.text)
    if not diagnosis.sound:
        raise typer.Exit(UNSOUND)


app.command()(check)
app.command()(analyze)
app.command()(tune)
app.command()(serve)
app.command()(demo)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Exit codes: 0; 1 for a fault that doctor or check finds, or a target that tune misses; 2
    for a mistake; 130 on Ctrl-C."""
    try:
        code = app(arguments, standalone_mode=False)
        return code if isinstance(code, int) else OK
    except UserError as error:
        return _complain(error.typed)
    except Exception as error:
        # Usage errors of typer (an unknown option, a missing argument); their class is not public.
        if not hasattr(error, "format_message"):
            raise
        return _complain(error.format_message())


def _complain(sentence: str) -> int:
    if sentence:  # empty where the help has been printed instead
        typer.echo(f"vlmprune: {' '.join(sentence.split())}", err=True)
    return USAGE
