"""`vlmprune serve`: a server with OpenAI's interface."""

from __future__ import annotations

import logging
from typing import Annotated

from vlmprune.cli.shell import typer
from vlmprune.cli.words import DEVICE, MODEL, POSITION_IDS, TEXT_TOWER, quiet
from vlmprune.core.errors import Option, UserError
from vlmprune.core.extras import check_packages


def serve(
    model: Annotated[str, typer.Argument(help=MODEL)],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTIONS]", help="With vllm, behind --: options of `vllm serve`.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="transformers or vllm. Default: vllm where it is installed, or else transformers."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="A method, FILE.py:Class, recipe or preset.")] = None,
    keep: Annotated[
        str | None, typer.Option(help="Share (0.25) or number (64) of each image's visual tokens to keep.")
    ] = None,
    keep_latest: Annotated[
        str | None, typer.Option(help="Instead of --keep: of the images of the last message that has images.")
    ] = None,
    keep_older: Annotated[str | None, typer.Option(help="With --keep-latest: of all images before those.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 for any that is free.")] = 8000,
    allow_request_keep: Annotated[
        bool, typer.Option("--allow-request-keep", help="Let a request set vlmprune_keep, its own budget.")
    ] = False,
    allow_request_query: Annotated[
        bool,
        typer.Option(
            "--allow-request-query",
            help="Let a request set vlmprune_query, what methods that read the question compare its images with.",
        ),
    ] = False,
    canary: Annotated[
        float,
        typer.Option(help="Share of the requests that also run unpruned; their replies are compared and logged."),
    ] = 0.0,
    text_tower: Annotated[str | None, typer.Option(help=TEXT_TOWER)] = None,
    positions: Annotated[str | None, typer.Option(help=POSITION_IDS)] = None,
    seed: Annotated[int, typer.Option(help="Seed of methods that draw.")] = 0,
    device: Annotated[str | None, typer.Option(help=DEVICE)] = None,
    continuous_batching: Annotated[
        bool, typer.Option("--continuous-batching", help="Of `transformers serve`: refused, as it cannot be pruned.")
    ] = False,
) -> None:
    """Serve a pruned model with OpenAI's interface: chat completions and responses, with images and streaming."""
    from vlmprune.core.budget import parse_budget, parse_keep
    from vlmprune.serve.engine import VLLM, choose_engine
    from vlmprune.serve.recipes import serving_recipe

    ages = [None if text is None else parse_keep(text) for text in (keep_latest, keep_older)]
    if choose_engine(engine) == VLLM:
        from vlmprune.serve.vllm.launch import refuse_options, run_server, vllm_command

        refuse_options({"device": device, "continuous_batching": continuous_batching})
        recipe = serving_recipe(method, None if keep is None else parse_budget(keep), *ages)
        command = vllm_command(
            model, recipe, positions=positions, seed=seed, request_keep=allow_request_keep,
            request_query=allow_request_query, canary=canary, text_tower=text_tower, host=host, port=port,
            arguments=arguments or (),
        )  # fmt: skip
        typer.echo(f"Serving {model} under {recipe} with vLLM (Ctrl-C stops it).")
        run_server(command)
        return
    if arguments:
        raise UserError(f"{arguments[0]} is an option of vLLM, and transformers serves here: leave it out.")
    if continuous_batching:
        raise UserError(
            "Continuous batching packs the tokens of several prompts into one row, which vlmprune cannot prune: leave "
            "out ",
            Option("continuous_batching", True),
            ".",
        )
    check_packages("serve")
    from vlmprune.bench.load import load_model
    from vlmprune.serve.comparison import FORMAT
    from vlmprune.serve.serving import Serving
    from vlmprune.serve.wanted import Allowed

    recipe = serving_recipe(method, None if keep is None else parse_budget(keep), *ages)
    from vlmprune.serve.address import LOCAL, listen, url_of
    from vlmprune.serve.app import build_app, run

    quiet()
    logging.basicConfig(level=logging.INFO, format=FORMAT)
    with listen(host, port) as at:
        loaded = load_model(model, device, text_tower)
        allowed = Allowed(allow_request_keep, allow_request_query)
        serving = Serving(loaded, recipe, allowed, positions, seed, canary)
        app = build_app(serving)
        typer.echo(f"Serving {model} under {recipe} at {url_of(host, at)}/v1 (Ctrl-C stops it).")
        if host not in LOCAL:
            typer.echo("Whoever reaches this address can use the model: the server asks for no key.", err=True)
        run(serving, app, at)
