"""Starting `vllm serve` with the plugin, after a look at whether it can prune the model so."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vlmprune.core.errors import Option, UserError
from vlmprune.runtime.text_tower import check_tower, clip_config
from vlmprune.serve.vllm.asked import Asked, asked_in, overrides
from vlmprune.serve.vllm.families import apart_of, on_meta
from vlmprune.serve.vllm.figures import share_folder
from vlmprune.serve.wanted import check_request_query

if TYPE_CHECKING:
    from vlmprune.core.recipe import Recipe
    from vlmprune.runtime.apart import Apart

MIDDLEWARE = "vlmprune.serve.vllm.requests.Requests"
OURS = ("--hf-overrides", "--model-impl", "--trust-request-mm-kwargs")  # options of vLLM that say what the plugin says
AROUND = "answers clients without vLLM's HTTP server, in which vlmprune stands"
ELSEWHERE = {
    "--grpc": AROUND,
    "--grpc-port": AROUND,
    "--tokens-only": "takes prompts in which images were counted elsewhere",
    "--enable-scale-out": "takes prompts in which images were counted elsewhere",
    "--headless": "starts an engine whose server is on another machine, which may have been told to prune otherwise",
    "--data-parallel-multi-port-external-lb": "starts several servers, which would add up each other's figures",
    "--config": "has further options, which vlmprune does not see",
}  # options of vLLM that vlmprune was not tested with
RUST = "VLLM_USE_RUST_FRONTEND"


def vllm_command(
    model: str,
    recipe: Recipe,
    *,
    positions: str | None = None,
    seed: int = 0,
    request_keep: bool = False,
    request_query: bool = False,
    canary: float = 0.0,
    text_tower: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    arguments: Sequence[str] = (),
) -> list[str]:
    """The command that serves a pruned model with vLLM.

    Args:
        model: an embedded model's name, a local folder, or a hub id.
        request_keep, request_query: let a request set its own budget, and what its images are compared with.
        canary: the share of the requests that are also run unpruned.
        text_tower: see `overrides`; an embedded model has its own.
        arguments: further options of `vllm serve`.

    Raises:
        UserError: the plugin does not prune this model, or not so; an option contradicts it.
    """
    from vlmprune.assets import CLIP, embedded_names, embedded_path
    from vlmprune.bench.load import find_model

    check_arguments(arguments)
    find_model(model)
    embedded = embedded_path(model) if model in embedded_names() else None
    place = str(embedded or _place(model))
    own = None if embedded is None or not (embedded / CLIP).is_dir() else str(embedded / CLIP)
    tower = own if text_tower is None else _place(text_tower)
    asked = asked_in(overrides(recipe, positions=positions, seed=seed, request_keep=request_keep, canary=canary))
    apart = check_model(place, asked)
    if request_query:
        check_request_query(recipe, apart.reads)
    if not apart.needs_tower:
        tower = None
    elif tower is not None:
        check_tower(clip_config(tower), apart.adapter)
    asked = replace(asked, request_query=request_query, text_tower=tower, reads=apart.reads)
    return [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", place, "--served-model-name", model,
        "--host", host, "--port", str(port), "--hf-overrides", json.dumps(asked.overrides),
        "--middleware", MIDDLEWARE, *(["--trust-request-mm-kwargs"] if asked.tells else []), *arguments,
    ]  # fmt: skip


def _place(name: str) -> str:
    """A local folder as all processes find it, or a hub id."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise UserError for an option of `vllm serve` that vlmprune sets itself, or that leads past its middleware."""
    for argument in arguments:
        name = argument.partition("=")[0].partition(".")[0].replace("_", "-")  # vLLM reads all of them
        if name in OURS:
            raise UserError(f"{name} is what vlmprune sets itself: leave it out.")
        if name in ELSEWHERE:
            raise UserError(f"{name} {ELSEWHERE[name]}, and was not tested: leave it out.")
    if os.environ.get(RUST, "0") != "0":
        raise UserError(f"{RUST} {AROUND}, and was not tested: unset it.")


def check_model(place: str, asked: Asked) -> Apart:
    """The recipe on the model in this folder, or of this hub id; UserError if the plugin does not prune it so."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise UserError(f"{place!r} is not a model that transformers knows: {str(error).splitlines()[0]}") from error
    return apart_of(on_meta(config), asked.under(None), has_axes(config))


def has_axes(config: Any) -> bool:
    """Whether a model has M-RoPE."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return "mrope_section" in rope


def run_server(command: Sequence[str]) -> NoReturn:
    """Become the server, so that signals reach it."""
    share_folder(os.environ)
    sys.stdout.flush()
    os.execv(command[0], list(command))


def refuse_options(given: dict[str, Any]) -> None:
    """Raise UserError for options of the transformers engine that were set; vLLM has none of them.

    Args:
        given: options by name, with a false value where they were not set.
    """
    for name, value in given.items():
        if value:
            raise UserError(Option(name, value), " is for ", Option("engine", "transformers"), " only: leave it out.")
