"""`vlmprune bench`: the comparison of methods, their timings, and the engines that run it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from vlmprune.cli.shell import typer
from vlmprune.cli.words import (
    FORCE,
    INTERRUPTED,
    JUDGE,
    JUDGE_MODEL,
    MODEL,
    POSITION_IDS,
    TEXT_TOWER,
    keeps_of,
    numbers_of,
    pixels_of,
    quiet,
    refuse,
    single,
    words_of,
)
from vlmprune.core.errors import Option, UserError
from vlmprune.core.extras import check_packages


def bench(
    model: Annotated[
        list[str] | None, typer.Option(help=f"{MODEL} May be repeated. Default: both embedded models.")
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
    frames: Annotated[
        str | None,
        typer.Option(
            help="Frames of each video, by commas: the tasks are run with each number. For tasks about videos."
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(help="With --frames: visual tokens to keep of a video, however many frames, by commas."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with local copies of data sets. Default: they come from the hub.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Whose wording the prompts use: short, lmms, vlmevalkit or llava.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Questions per task. Default: 64; all in a profile.")] = None,
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
    positions: Annotated[str | None, typer.Option(help=POSITION_IDS)] = None,
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
    text_tower: Annotated[str | None, typer.Option(help=TEXT_TOWER)] = None,
    judge: Annotated[str | None, typer.Option(help=JUDGE)] = None,
    judge_model: Annotated[str | None, typer.Option(help=JUDGE_MODEL)] = None,
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
    force: Annotated[bool, typer.Option("--force", help=FORCE)] = False,
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
        untimed |= {"max_new_tokens": max_new_tokens, "ray": ray, "replicas": replicas, "engine": engine}
        untimed |= {"judge_model": judge_model, "frames": frames, "tokens": tokens}
        if budget is not None:
            raise UserError(Option("budget", budget), " is not for timings: write it in a recipe, fastv@2:mean=0.222.")
        refuse(untimed, "is not for timings: leave it out, or leave out", Option("speed", True))
        seed = single(numbers_of("seeds", seeds), "Timings take one seed: give ", Option("seeds", 0), ".")
        shared = {"batch_size": batch_size, "positions": positions, "seed": seed}
        return _speed({**_compared(model, methods, keep), **timed, **shared}, out, force)
    refuse(timed, "is for timings alone: give with it", Option("speed", True))
    if ray is None:
        refuse({"replicas": replicas}, "is for Ray alone: give with it", Option("ray", "auto"))
    from vlmprune.bench.judging import CACHE, judge_for
    from vlmprune.bench.plan import Plan
    from vlmprune.bench.profiles import get_profile

    if full and limit is not None:
        raise UserError("--full and --limit contradict each other: give one of them.")
    several = ("Several batch sizes are for timings alone: give one, or ", Option("speed", True), ".")
    asked: dict[str, Any] = {
        **_compared(model, methods, keep),
        **_framed(tasks, frames, tokens, keep),
        "budget": budget,
        "limit": limit,
        "batch_size": None if batch_size is None else single(numbers_of("batch_size", batch_size), *several),
        "data": None if data is None else str(data),
        "protocol": protocol,
        "pixels": None if pixels is None else pixels_of(pixels),
        "max_new_tokens": max_new_tokens,
        "positions": positions,
        "text_tower": text_tower,
    }
    given = {name: value for name, value in asked.items() if value is not None} | {"seeds": numbers_of("seeds", seeds)}
    if full:
        given["limit"] = None
    if engine is not None:
        own = {"profile": profile, "protocol": protocol, "pixels": pixels, "max_new_tokens": max_new_tokens}
        own |= {"frames": frames, "tokens": tokens}
        return _lmms(
            engine, given, own | {"ray": ray, "judge": judge, "judge_model": judge_model, "force": force or None}
        )
    table = None if profile is None else get_profile(profile)
    plan = Plan(**given) if table is None else table.plan(given)
    with _pools(ray, replicas) as open_pool:
        _bench(plan, out, force, judge_for(judge, judge_model, out / CACHE), open_pool)
    for sentence in table.said() if table is not None else ():
        typer.echo(sentence)


def _compared(model: list[str] | None, methods: str | None, keep: str | None) -> dict[str, Any]:
    """What is compared, as the plans of accuracy and of speed call it; None for what the user did not give."""
    from vlmprune.bench.plan import split_methods

    return {
        "models": tuple(dict.fromkeys(model)) if model else None,
        "methods": None if methods is None else split_methods(methods),
        "keeps": None if keep is None else keeps_of(keep),
    }


def _framed(tasks: str | None, frames: str | None, tokens: str | None, keep: str | None) -> dict[str, Any]:
    """The tasks with each number of frames, and the budgets in tokens, as the plan calls them."""
    named = None if tasks is None else words_of(tasks)
    if frames is None:
        refuse({"tokens": tokens}, "is for several numbers of frames: give with it", Option("frames", "8,16,32"))
        return {"tasks": named}
    if named is None:
        raise UserError(Option("frames", frames), " needs tasks about videos: name them with ", Option("tasks"), ".")
    if tokens is not None and keep is not None:
        raise UserError(Option("tokens", tokens), " and ", Option("keep", keep), " both say what is kept: give one.")
    from vlmprune.tasks.frames import with_frames

    found: dict[str, Any] = {"tasks": with_frames(named, numbers_of("frames", frames))}
    if tokens is not None:
        found["keeps"] = numbers_of("tokens", tokens)
        if min(found["keeps"]) < 1:
            raise UserError(Option("tokens", tokens), " needs whole numbers from 1, separated by commas.")
    return found


# Fields of the plan of timings that are called and given as the options are.
_SAME = ("models", "methods", "keeps", "repeats", "device", "dtype", "positions", "seed")


def _speed(given: dict[str, Any], out: Path, force: bool) -> None:
    """`bench --speed`: `given` are its options by name, None where the user gave none."""
    from rich.console import Console

    from vlmprune.bench.speed import run_speed
    from vlmprune.bench.speed_console import print_sheets, progress_lines
    from vlmprune.bench.speed_plan import planned
    from vlmprune.bench.speed_report import sheets
    from vlmprune.report import build, check_report

    lists = {
        name: given[name] and numbers_of(name, given[name]) for name in ("visual_tokens", "batch_size", "new_tokens")
    }
    plan = planned(
        given["preset"],
        {
            "architecture": given["random"],
            "visual": lists["visual_tokens"],
            "batches": lists["batch_size"],
            "new_tokens": lists["new_tokens"],
            **{name: given[name] for name in _SAME},
        },
    )
    check_report(out, force=force)
    quiet()
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
    refuse(own, "is for our own loop: leave it out, or leave out", Option("engine", engine))
    tasks, folder, limit = (given.pop(name, None) for name in ("tasks", "data", "limit"))
    if not tasks:
        raise UserError(Option("engine", engine), " needs tasks of lmms-eval: give them with ", Option("tasks"), ".")
    quiet()
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
    quiet()
    console = Console()
    try:
        with progress_bars(console) as progress:
            run_bench(plan, out, progress, then=write_examples, force=force, open_pool=open_pool)
    except KeyboardInterrupt:
        typer.echo(f"Interrupted: finished batches are in {out}, and the same command continues from there.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    failed = None if judge is None else _judge(judge, out)
    tables = build_tables(out)
    print_tables(console, tables)
    for path in build(out, force=force, tables=tables):
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
