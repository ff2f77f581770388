"""The command line. Commands are thin; a user's mistake is one sentence."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import vlmprune
from vlmprune.core.errors import Option, UserError
from vlmprune.core.extras import SHELL, check_packages, needs

try:
    import typer
except ImportError:
    raise SystemExit(f"The command line {needs(SHELL)}") from None

OK, UNSOUND, USAGE, INTERRUPTED = 0, 1, 2, 130
_MODEL = "An embedded model's name, a local folder, or a hub id."
_TEXT_TOWER = "The CLIP model (folder or hub id) whose vision tower the model has, for methods that read the question."
_JUDGE = "URL of a server with OpenAI's chat completions that scores judged tasks; its key is read from OPENAI_API_KEY."
_JUDGE_MODEL = "The judge's name on that server."
_FORCE = "Overwrite, or write among, files that vlmprune has not written."

app = typer.Typer(
    name="vlmprune",
    help="Run vision-language models on a fraction of their visual tokens, and measure what it costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"vlmprune {vlmprune.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command()
def run(
    image: Annotated[Path, typer.Argument(help="A picture.")],
    question: Annotated[str, typer.Option("--question", "-q", help="What to ask about it.")],
    model: Annotated[str, typer.Option(help=_MODEL)] = "llava",
    method: Annotated[
        str | None, typer.Option(help="A method, FILE.py:Class, recipe or preset; else unpruned.")
    ] = None,
    keep: Annotated[str | None, typer.Option(help="Share (0.222) or number (64) of visual tokens to keep.")] = None,
    overlay: Annotated[Path | None, typer.Option(help="Where to draw kept and dropped patches.")] = None,
    text_tower: Annotated[str | None, typer.Option(help=_TEXT_TOWER)] = None,
    force: Annotated[bool, typer.Option("--force", help=_FORCE)] = False,
) -> None:
    """Ask a model about a picture, pruned or not."""
    from vlmprune.ask import run_image
    from vlmprune.core.budget import parse_keep

    check_packages("run")
    _quiet()
    budget = None if keep is None else parse_keep(keep)
    asked: dict[str, Any] = {"model": model, "method": method, "keep": budget, "text_tower": text_tower}
    typer.echo(run_image(image, question, **asked, overlay=overlay, force=force))


@app.command()
def bench(
    model: Annotated[list[str] | None, typer.Option(help="May be repeated; the embedded models without it.")] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated; FILE.py:Class, recipes and presets too; all for every one; eight without it."
        ),
    ] = None,
    keep: Annotated[str | None, typer.Option(help="Comma-separated budgets; 0.333,0.222,0.111 without it.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Comma-separated names or files of yours; the generated ones without it.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with local copies of data sets; else the hub.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Whose words: short, lmms, vlmevalkit or llava.")] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="A paper's table (hiprune, hiprune:table3), whose settings the other options override."),
    ] = None,
    pixels: Annotated[
        str | None, typer.Option(help="Least and most pixels of a picture (200704,1003520); the protocol's without it.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Length of a reply; the protocol's without it.")] = None,
    limit: Annotated[int | None, typer.Option(help="Questions per task; 192 without it, all in a profile.")] = None,
    full: Annotated[bool, typer.Option("--full", help="All questions; 600 of a generated task.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of results; the same command continues there.")] = Path("results"),
    seed: Annotated[int, typer.Option(help="For methods that draw random numbers.")] = 0,
    batch_size: Annotated[int | None, typer.Option(help="Questions per batch; 32 without it.")] = None,
    positions: Annotated[str | None, typer.Option(help="original or compact; each method's own without it.")] = None,
    text_tower: Annotated[str | None, typer.Option(help=_TEXT_TOWER)] = None,
    judge: Annotated[str | None, typer.Option(help=_JUDGE)] = None,
    judge_model: Annotated[str | None, typer.Option(help=_JUDGE_MODEL)] = None,
    force: Annotated[bool, typer.Option("--force", help=_FORCE)] = False,
) -> None:
    """Compare methods on the generated benchmark, then write the report."""
    check_packages("bench")
    from vlmprune.bench.judging import CACHE, judge_for
    from vlmprune.bench.profiles import get_profile
    from vlmprune.bench.runner import Plan, split_methods

    if full and limit is not None:
        raise UserError("--full and --limit contradict each other: give one of them.")
    asked: dict[str, Any] = {
        "models": tuple(dict.fromkeys(model)) if model else None,
        "methods": None if methods is None else split_methods(methods),
        "keeps": None if keep is None else _keeps(keep),
        "tasks": None if tasks is None else _words(tasks),
        "limit": limit,
        "batch_size": batch_size,
        "data": None if data is None else str(data),
        "protocol": protocol,
        "pixels": None if pixels is None else _pixels(pixels),
        "max_new_tokens": max_new_tokens,
        "positions": positions,
        "text_tower": text_tower,
    }
    given = {name: value for name, value in asked.items() if value is not None} | {"seed": seed}
    if full:
        given["limit"] = None
    table = None if profile is None else get_profile(profile)
    plan = Plan(**given) if table is None else table.plan(given)
    _bench(plan, out, force, judge_for(judge, judge_model, out / CACHE))
    for sentence in table.said() if table is not None else ():
        typer.echo(sentence)


def _bench(plan: Any, out: Path, force: bool, judge: Any) -> None:
    from rich.console import Console

    from vlmprune.ask import write_examples
    from vlmprune.bench.console import print_tables, progress_bars
    from vlmprune.bench.runner import run_bench
    from vlmprune.bench.table import build_tables
    from vlmprune.report import build, check_report

    check_report(out, force=force)
    _quiet()
    console = Console()
    try:
        with progress_bars(console) as progress:
            run_bench(plan, out, progress, then=partial(write_examples, out), force=force)
    except KeyboardInterrupt:
        typer.echo(f"Interrupted: the finished batches are in {out}; the same command continues.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    failed = None if judge is None else _judge(judge, out)
    print_tables(console, build_tables(out))
    for path in build(out, force=force):
        if path.suffix == ".html":
            console.print(f"Report: {path}", soft_wrap=True, highlight=False)
    if failed is not None:
        raise failed


def _judge(judge: Any, out: Path) -> UserError | None:
    """Judge what needs it. An error is for after the tables: they say what is not measured."""
    from vlmprune.bench.judging import judge_results
    from vlmprune.bench.store import load_results

    try:
        judge_results(load_results(out), judge)
    except UserError as error:
        return error
    finally:
        typer.echo(f"Judge {judge.model}: {judge.cost}.", err=True)
    return None


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A result folder of vlmprune bench.")],
    force: Annotated[bool, typer.Option("--force", help=_FORCE)] = False,
) -> None:
    """Write tables, plots and the HTML page of a result folder again; no model is needed."""
    check_packages("report")
    from vlmprune.report import build

    for path in build(folder, force=force):
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
    judge: Annotated[str | None, typer.Option(help=_JUDGE)] = None,
    judge_model: Annotated[str | None, typer.Option(help=_JUDGE_MODEL)] = None,
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


@app.command("list")
def list_(what: Annotated[str, typer.Argument(help="methods, presets, models, tasks, profiles or checks")]) -> None:
    """List methods, presets, embedded models and families (by their model type), tasks, profiles, checks of methods."""
    listings = {
        "methods": _list_methods,
        "presets": _list_presets,
        "models": _list_models,
        "tasks": _list_tasks,
        "profiles": _list_profiles,
        "checks": _list_checks,
    }
    if what not in listings:
        raise UserError(f"{what!r} cannot be listed: choose {', '.join(listings)}.")
    rows = listings[what]()
    names, kinds = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, kind, summary in rows:
        typer.echo(f"{name.ljust(names)}  {kind.ljust(kinds)}  {summary}")


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help=_MODEL)],
    picture: Annotated[
        Path | None, typer.Option(help="Where to draw the token layout of a sample picture (.png, .jpg, .webp).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help=_FORCE)] = False,
) -> None:
    """Say where a model's visual tokens are and what works, and prove that pruning is exact on it.

    The proofs generate with a cache: one prompt, a batch with padding, a second turn. The exit code is 1 where a proof
    or a method fails.
    """
    check_packages("doctor")
    from vlmprune.doctor import diagnose

    _quiet()
    diagnosis = diagnose(model, picture, force=force)
    typer.echo(diagnosis.text)
    if not diagnosis.sound:
        raise typer.Exit(UNSOUND)


@app.command()
def check(
    method: Annotated[str, typer.Argument(help="A method, FILE.py:Class, or a method with options; without a budget.")],
    only: Annotated[
        list[str] | None, typer.Option(help="A check, as `vlmprune list checks` names it; repeatable.")
    ] = None,
    family: Annotated[list[str] | None, typer.Option(help="A tiny model; may be repeated; all without it.")] = None,
    model: Annotated[str | None, typer.Option(help=f"Instead of tiny models. {_MODEL}")] = None,
    goldens: Annotated[Path | None, typer.Option(help="A folder of recorded inputs and outputs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every outcome, as JSON.")] = False,
) -> None:
    """Check all that a method owes its caller, on a tiny model of every family. The exit code is 1 where a check fails.

    It takes a minute or two, and needs neither network nor files. `--only fidelity` looks at recorded cases alone.
    """
    check_packages("check")
    from vlmprune.testing import check as kit
    from vlmprune.testing.goldens import FIDELITY, check_goldens

    _quiet()
    asked = kit.method_of(method)
    if only and FIDELITY in only and goldens is None:
        raise UserError("The check 'fidelity' needs recorded cases: give ", Option("goldens"), ".")
    others = [name for name in only or () if name != FIDELITY]
    outcomes: list[kit.Outcome] = []
    if others or not only:
        outcomes += kit.run_checks(asked, _grounds(family, model), others or None)
    if goldens is not None and (not only or FIDELITY in only):
        outcomes += check_goldens(asked, goldens)
    typer.echo(kit.as_json(outcomes) if as_json else kit.as_text(asked, outcomes))
    if any(outcome.status == kit.FAILED for outcome in outcomes):
        raise typer.Exit(UNSOUND)


def _grounds(families: list[str] | None, model: str | None) -> Any:
    """Tiny models, or one of the user's."""
    from vlmprune.testing import ground, grounds

    if model is None:
        return [ground(name) for name in dict.fromkeys(families)] if families else grounds()
    if families:
        raise UserError(Option("family"), " and ", Option("model"), " contradict each other: give one of them.")
    check_packages("doctor")
    from vlmprune.doctor.ground import ground_of

    return [ground_of(model)]


def _list_checks() -> list[tuple[str, str, str]]:
    from vlmprune.testing import CHECKS

    return [(one.name, one.of, one.words) for one in CHECKS.values()]


def _list_methods() -> list[tuple[str, str, str]]:
    return [_method_row(name) for name in vlmprune.METHODS]


def _method_row(name: str) -> tuple[str, str, str]:
    try:
        method = vlmprune.METHODS[name]
    except UserError as error:  # of a package that is broken or claims another's name
        return name, "broken", error.typed
    return name, method.stage, method.summary


def _list_presets() -> list[tuple[str, str, str]]:
    from vlmprune.core.presets import PRESETS

    return [(name, preset.recipe, preset.source) for name, preset in PRESETS.items()]


def _list_models() -> list[tuple[str, str, str]]:
    from vlmprune.assets import embedded_names
    from vlmprune.models import FAMILIES, summary

    embedded = [(name, "embedded", "tiny, trained on a generated world, in the package") for name in embedded_names()]
    families = [(name, "family", summary(adapter)) for name, adapter in FAMILIES.items()]
    others = ("others", "generic", "models of transformers' usual layout; vlmprune doctor says what works on one")
    return [*embedded, *families, others]


def _list_tasks() -> list[tuple[str, str, str]]:
    from vlmprune.tasks import built_in_tasks

    return [(task.name, task.dimension, f"{task.summary} ({task.metric.name})") for task in built_in_tasks().values()]


def _list_profiles() -> list[tuple[str, str, str]]:
    from vlmprune.bench.profiles import profiles

    return [(name, profile.protocol, profile.source) for name, profile in profiles().items()]


def _words(text: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise UserError(f"{text!r} names nothing: write names separated by commas.")
    return words


def _pixels(text: str) -> Any:
    from vlmprune.bench.protocols import Pixels

    numbers = [word for word in _words(text) if word.isdecimal()]
    if len(numbers) != 2 or text.count(",") != 1:
        raise UserError(
            Option("pixels", text), " is not a range: give the least and the most pixels, as in 200704,1003520."
        )
    return Pixels(*map(int, numbers))


def _keeps(text: str) -> tuple[Any, ...]:
    from vlmprune.core.budget import parse_keep

    return tuple(dict.fromkeys(parse_keep(word) for word in _words(text)))


def _quiet() -> None:
    """No advice and no bars from transformers between our lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; exit codes: 0, 1 where doctor or check finds a fault, 2 for a mistake, 130 on Ctrl-C."""
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


if __name__ == "__main__":
    sys.exit(main())
