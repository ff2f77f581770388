"""`vlmprune demo`: a web page to try methods on."""

from __future__ import annotations

from typing import Annotated

from vlmprune.cli.shell import typer
from vlmprune.cli.words import DEVICE, DTYPE, MODEL, POSITION_IDS, TEXT_TOWER, quiet
from vlmprune.core.errors import Option, UserError
from vlmprune.core.extras import check_packages


def demo(
    model: Annotated[str, typer.Option(help=MODEL)] = "llava",
    methods: Annotated[
        str,
        typer.Option(
            help="Chosen at first: methods, FILE.py:Class, recipes or presets, separated by commas. The page offers "
            "all other methods too that the model can be pruned by."
        ),
    ] = "hiprune,visionzip,fastv",
    keep: Annotated[float, typer.Option(help="Share of the visual tokens that is kept at first.")] = 0.22,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 for any that is free.")] = 7860,
    max_new_tokens: Annotated[int, typer.Option(help="Length of a reply, in tokens, at most.")] = 64,
    text_tower: Annotated[str | None, typer.Option(help=TEXT_TOWER)] = None,
    positions: Annotated[str | None, typer.Option(help=POSITION_IDS)] = None,
    seed: Annotated[int, typer.Option(help="Seed of methods that draw.")] = 0,
    device: Annotated[str | None, typer.Option(help=DEVICE)] = None,
    dtype: Annotated[str | None, typer.Option(help=DTYPE)] = None,
) -> None:
    """Open a web page on which methods can be tried: a photo, a question, and the answers side by side.

    Only this computer can open it unless --host says otherwise. An upload is read into memory, and its file deleted.
    """
    check_packages("demo")
    from vlmprune.ask.run import Question
    from vlmprune.bench.load import load_model
    from vlmprune.bench.plan import split_methods
    from vlmprune.demo.asking import Desk, at_share
    from vlmprune.demo.settings import MOST_METHODS, Settings
    from vlmprune.serve.address import LOCAL, listen, url_of

    named = split_methods(methods)
    if len(named) > MOST_METHODS:
        raise UserError(f"The page asks at most {MOST_METHODS} methods at once: name fewer in ", Option("methods"), ".")
    if not 0.0 < keep <= 1.0:
        raise UserError(Option("keep", keep), " must be a share of the tokens, above 0 and at most 1.")
    options = Question("a question", max_new_tokens=max_new_tokens, positions=positions, seed=seed)
    options.check()
    for name in named:
        at_share(name, keep)
    quiet()
    with listen(host, port) as at:
        desk = Desk(load_model(model, device, text_tower, dtype), options, text_tower)
        offered = desk.offered(named)
        from vlmprune.demo.page import Page
        from vlmprune.demo.samples import samples_for
        from vlmprune.demo.server import build_app, run, upload_folder

        samples = samples_for(desk.loaded)
        first = next(iter(samples.values()))
        for _ in desk.results(first.image, first.question, named, keep):
            pass  # what runs first is slow, and would be the unpruned answer of the first visitor
        start = Settings(first.name, first.question, named, keep)
        with upload_folder() as uploads:
            app = build_app(Page(desk, samples, offered, start, uploads))
            typer.echo(f"The page of {model} is at {url_of(host, at)} (Ctrl-C stops it).")
            if host not in LOCAL:
                typer.echo("Whoever reaches this address can use the model: the page asks for no password.", err=True)
            run(app, at)
