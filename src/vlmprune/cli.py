"""The command line. Commands are thin; a user's mistake is answered by one sentence."""

from __future__ import annotations

import re
import shlex
import sys
from contextlib import nullcontext
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
_FORCE = "Overwrite files that vlmprune did not write, and write into folders that hold such files."

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
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    image: Annotated[Path, typer.Argument(help="The file of a picture.")],
    question: Annotated[str, typer.Option("--question", "-q", help="What to ask about the picture.")],
    model: Annotated[str, typer.Option(help=_MODEL)] = "llava",
    method: Annotated[
        str | None, typer.Option(help="A method, FILE.py:Class, recipe or preset. Without it nothing is pruned.")
    ] = None,
    keep: Annotated[str | None, typer.Option(help="Share (0.222) or number (64) of visual tokens to keep.")] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="File for a picture of the kept and dropped patches (.png, .jpg, .webp).")
    ] = None,
    text_tower: Annotated[str | None, typer.Option(help=_TEXT_TOWER)] = None,
    force: Annotated[bool, typer.Option("--force", help=_FORCE)] = False,
) -> None:
    """Ask a model a question about a picture, with or without pruning."""
    from vlmprune.ask import run_image
    from vlmprune.core.budget import parse_keep

    check_packages("run")
    _quiet()
    budget = None if keep is None else parse_keep(keep)
    asked: dict[str, Any] = {"model": model, "method": method, "keep": budget, "text_tower": text_tower}
    typer.echo(run_image(image, question, **asked, overlay=overlay, force=force))


@app.command()
def bench(
    model: Annotated[
        list[str] | None, typer.Option(help=f"{_MODEL} May be repeated. Default: both embedded models.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods, FILE.py:Class, recipes, presets, separated by commas; all for every method. Default: eight."
        ),
    ] = None,
    keep: Annotated[str | None, typer.Option(help="Budgets, separated by commas. Default: 0.333,0.222,0.111.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="What --keep counts: own (as each method's authors do), mean (visual tokens entering a layer, over "
            "all layers) or final (those left at the end). Default: own."
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks, by name or as files of yours, separated by commas. Default: the generated ones."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with local copies of data sets. Default: they come from the hub.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Whose wording the prompts use: short, lmms, vlmevalkit or llava.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Questions per task. Default: 192; all in a profile.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Ask all questions, and 600 of a generated task.")] = False,
    out: Annotated[
        Path, typer.Option(help="Folder for the results. The same command continues an interrupted run there.")
    ] = Path("results"),
    seeds: Annotated[
        str, typer.Option(help="Seeds of methods that draw, by commas: one row for all, their mean and spread.")
    ] = "0",
    batch_size: Annotated[
        str | None, typer.Option(help="Questions per batch. Default: 32. With --speed several, by commas. Default: 1.")
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="Position ids: original or compact. Default: each method's own policy.")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="A paper's table (hiprune, hiprune:table3). Other options override its settings."),
    ] = None,
    pixels: Annotated[
        str | None, typer.Option(help="Least and most pixels of a picture: 200704,1003520. Default: the protocol's.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Length of a reply, in tokens. Default: the protocol's.")
    ] = None,
    text_tower: Annotated[str | None, typer.Option(help=_TEXT_TOWER)] = None,
    judge: Annotated[str | None, typer.Option(help=_JUDGE)] = None,
    judge_model: Annotated[str | None, typer.Option(help=_JUDGE_MODEL)] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="lmms: run tasks of lmms-eval and print its figures. --data is then a folder of task files."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Run on the Ray cluster at this address; auto for one that is here, or for this machine."),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(help="With --ray: copies of the model. Default: one a GPU, or one a node without GPUs."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help=_FORCE)] = False,
    speed: Annotated[bool, typer.Option("--speed", help="Measure time, memory and operations, not accuracy.")] = False,
    random: Annotated[
        str | None,
        typer.Option(
            help="With --speed: an architecture with random weights instead of a model, also smaller "
            "(qwen3-vl-8b:layers=2,encoder_layers=2,shrink=16); a wrong name lists all."
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="With --speed: a paper's timing table to repeat; a wrong name lists all.")
    ] = None,
    visual_tokens: Annotated[
        str | None,
        typer.Option(help="With --random: numbers of visual tokens, by commas. Default: about 576."),
    ] = None,
    new_tokens: Annotated[
        str | None, typer.Option(help="With --speed: lengths of the answer, separated by commas. Default: 16.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="With --speed: turns that count. Default: 10.")] = None,
    device: Annotated[str | None, typer.Option(help="With --speed: cpu, cuda, ... Default: a GPU, if any.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="With --random: float32, bfloat16 or float16. Default: bfloat16 on a GPU.")
    ] = None,
) -> None:
    """Compare methods on tasks, or with --speed their time and memory, and write the report."""
    check_packages("bench")
    timed = {
        "random": random,
        "preset": preset,
        "visual_tokens": visual_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "device": device,
        "dtype": dtype,
    }
    if speed:
        untimed: dict[str, Any] = {"tasks": tasks, "limit": limit, "full": full or None, "text_tower": text_tower}
        untimed |= {"data": data, "protocol": protocol, "profile": profile, "pixels": pixels, "judge": judge}
        untimed |= {"max_new_tokens": max_new_tokens, "ray": ray, "engine": engine}
        if budget is not None:
            raise UserError(Option("budget", budget), " is not for timings: write it in a recipe, fastv@2:mean=0.222.")
        _refuse(untimed, "is not for timings: leave it out, or leave out", Option("speed", True))
        shared = {"model": model, "methods": methods, "keep": keep, "batch_size": batch_size, "positions": positions}
        seed = _single(_numbers("seeds", seeds), "Timings take one seed: give ", Option("seeds", 0), ".")
        return _speed({**shared, **timed, "seed": seed}, out, force)
    _refuse(timed, "is for timings alone: give with it", Option("speed", True))
    if ray is None:
        _refuse({"replicas": replicas}, "is for Ray alone: give with it", Option("ray", "auto"))
    from vlmprune.bench.judging import CACHE, judge_for
    from vlmprune.bench.plan import Plan, split_methods
    from vlmprune.bench.profiles import get_profile

    if full and limit is not None:
        raise UserError("--full and --limit contradict each other: give one of them.")
    several = ("Several batch sizes are for timings alone: give one, or ", Option("speed", True), ".")
    asked: dict[str, Any] = {
        "models": tuple(dict.fromkeys(model)) if model else None,
        "methods": None if methods is None else split_methods(methods),
        "keeps": None if keep is None else _keeps(keep),
        "budget": budget,
        "tasks": None if tasks is None else _words(tasks),
        "limit": limit,
        "batch_size": None if batch_size is None else _single(_numbers("batch_size", batch_size), *several),
        "data": None if data is None else str(data),
        "protocol": protocol,
        "pixels": None if pixels is None else _pixels(pixels),
        "max_new_tokens": max_new_tokens,
        "positions": positions,
        "text_tower": text_tower,
    }
    given = {name: value for name, value in asked.items() if value is not None} | {"seeds": _numbers("seeds", seeds)}
    if full:
        given["limit"] = None
    if engine is not None:
        own = {"profile": profile, "protocol": protocol, "pixels": pixels, "max_new_tokens": max_new_tokens}
        return _lmms(engine, given, own | {"ray": ray, "judge": judge, "force": force or None})
    table = None if profile is None else get_profile(profile)
    plan = Plan(**given) if table is None else table.plan(given)
    with _pools(ray, replicas) as open_pool:
        _bench(plan, out, force, judge_for(judge, judge_model, out / CACHE), open_pool)
    for sentence in table.said() if table is not None else ():
        typer.echo(sentence)


def _refuse(options: dict[str, Any], why: str, other: Option) -> None:
    for name, value in options.items():
        if value is not None:
            raise UserError(Option(name), f" {why} ", other, ".")


def _numbers(name: str, text: str) -> tuple[int, ...]:
    words = _words(text)
    for word in words:
        if not word.isdecimal():
            raise UserError(Option(name, text), f" must be whole numbers separated by commas, and {word!r} is not one.")
    return tuple(map(int, words))


def _single(numbers: tuple[int, ...], *refusal: str | Option) -> int:
    if len(numbers) > 1:
        raise UserError(*refusal)
    return numbers[0]


def _speed(given: dict[str, Any], out: Path, force: bool) -> None:
    """`bench --speed`: `given` are its options by name, None where the user gave none."""
    from rich.console import Console

    from vlmprune.bench.plan import split_methods
    from vlmprune.bench.speed import run_speed
    from vlmprune.bench.speed_console import print_sheets, progress_lines
    from vlmprune.bench.speed_plan import planned
    from vlmprune.bench.speed_report import sheets
    from vlmprune.report import build, check_report

    lists = {
        name: given[name] and _numbers(name, given[name]) for name in ("visual_tokens", "batch_size", "new_tokens")
    }
    plan = planned(
        given["preset"],
        {
            "models": tuple(dict.fromkeys(given["model"])) if given["model"] else None,
            "architecture": given["random"],
            "methods": None if given["methods"] is None else split_methods(given["methods"]),
            "keeps": None if given["keep"] is None else _keeps(given["keep"]),
            "visual": lists["visual_tokens"],
            "batches": lists["batch_size"],
            "new_tokens": lists["new_tokens"],
            **{name: given[name] for name in ("repeats", "device", "dtype", "positions", "seed")},
        },
    )
    check_report(out, force=force)
    _quiet()
    console = Console()
    try:
        results = run_speed(plan, out, progress_lines(console), preset=given["preset"], force=force)
    except KeyboardInterrupt:
        typer.echo(f"Interrupted: the complete turns are in {out}; the same command continues.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    print_sheets(console, sheets(results))
    for path in build(out, force=force):
        if path.name == "speed.md":
            console.print(f"Report: {path}", soft_wrap=True, highlight=False)


def _lmms(engine: str, given: dict[str, Any], own: dict[str, Any]) -> None:
    """`bench --engine`: `given` are fields of the plan, `own` the options that only our own loop has."""
    from vlmprune.bench.plan import Plan
    from vlmprune.engines.lmms_bench import lines, run_lmms

    if engine != "lmms":
        raise UserError(Option("engine", engine), " is not there: give ", Option("engine", "lmms"), ".")
    _refuse(own, "is for our own loop: leave it out, or leave out", Option("engine", engine))
    tasks, folder, limit = (given.pop(name, None) for name in ("tasks", "data", "limit"))
    if not tasks:
        raise UserError(Option("engine", engine), " needs tasks of lmms-eval: give them with ", Option("tasks"), ".")
    _quiet()
    for line in lines(run_lmms(Plan(**{"batch_size": 1, **given}), tasks, folder, limit)):
        typer.echo(line)


def _pools(ray: str | None, replicas: int | None) -> Any:
    """Where models are run: in this process, or on a Ray cluster."""
    if ray is None:
        from vlmprune.bench.worker import open_here

        return nullcontext(open_here)
    from vlmprune.engines.cluster import ray_cluster

    return ray_cluster(ray, replicas)


def _bench(plan: Any, out: Path, force: bool, judge: Any, open_pool: Any) -> None:
    from rich.console import Console

    from vlmprune.ask import write_examples
    from vlmprune.bench.compare import build_tables
    from vlmprune.bench.console import print_tables, progress_bars
    from vlmprune.bench.runner import run_bench
    from vlmprune.report import build, check_report

    check_report(out, force=force)
    _quiet()
    console = Console()
    try:
        with progress_bars(console) as progress:
            run_bench(plan, out, progress, then=write_examples, force=force, open_pool=open_pool)
    except KeyboardInterrupt:
        typer.echo(f"Interrupted: finished batches are in {out}, and the same command continues from there.", err=True)
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
    folder: Annotated[Path, typer.Argument(help="A result folder that vlmprune bench has written.")],
    published: Annotated[
        bool, typer.Option("--published", help="Also put the papers' printed figures beside those measured.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help=_FORCE)] = False,
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


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help=_MODEL)],
    picture: Annotated[
        Path | None, typer.Option(help="File for a drawing of a sample picture's token layout (.png, .jpg, .webp).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help=_FORCE)] = False,
) -> None:
    """Show where a model's visual tokens are and which methods work, and prove that pruning is exact on it.

    The proofs generate with a cache: for one prompt, for a batch with padding, and for a second turn. The exit code is
    1 if a proof or a method fails.
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
        str | None, typer.Option(help=f"For a method: the model to check on, instead of the tiny ones. {_MODEL}")
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

    _quiet()
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


def _list_checks() -> list[tuple[str, str, str]]:
    from vlmprune.testing import ADAPTER_CHECKS, CHECKS

    methods = [(one.name, "method", one.words) for one in CHECKS.values()]
    return [*methods, *((one.name, "adapter", one.words) for one in ADAPTER_CHECKS.values())]


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
    """Run the command line. Exit codes: 0, 1 if doctor or check finds a fault, 2 for a mistake, 130 on Ctrl-C."""
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
