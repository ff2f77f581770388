"""Starting `vllm serve` with the plugin, after a look at whether it can prune the model so."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vlmprune.core.errors import Option, UserError
from vlmprune.serve.vllm.asked import Asked, asked_in, overrides
from vlmprune.serve.vllm.families import apart_of, on_meta

if TYPE_CHECKING:
    from vlmprune.core.recipe import Recipe

MIDDLEWARE = "vlmprune.serve.vllm.requests"
OURS = ("--hf-overrides", "--model-impl")  # options of vLLM that say what the plugin says


def vllm_command(
    model: str,
    recipe: Recipe,
    *,
    positions: str | None = None,
    seed: int = 0,
    request_keep: bool = False,
    host: str = "127.0.0.1",
    port: int = 8000,
    arguments: Sequence[str] = (),
) -> list[str]:
    """The command that serves a pruned model with vLLM.

    Args:
        model: an embedded model's name, a local folder, or a hub id.
        request_keep: let a request set its own budget.
        arguments: further options of `vllm serve`.

    Raises:
        UserError: the plugin does not prune this model, or not so; an option contradicts it.
    """
    from vlmprune.assets import embedded_names, embedded_path
    from vlmprune.bench.load import find_model

    for argument in arguments:
        if argument.partition("=")[0] in OURS:
            raise UserError(f"{argument.partition('=')[0]} is what vlmprune sets itself: leave it out.")
    find_model(model)
    folder = Path(model).expanduser()
    place = str(embedded_path(model)) if model in embedded_names() else str(folder) if folder.is_dir() else model
    given = overrides(recipe, positions=positions, seed=seed, request_keep=request_keep)
    check_model(place, asked_in(given))
    return [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", place, "--served-model-name", model,
        "--host", host, "--port", str(port), "--hf-overrides", json.dumps(given),
        "--middleware", f"{MIDDLEWARE}.{'Budgets' if request_keep else 'NoBudgets'}",
        *(["--trust-request-mm-kwargs"] if request_keep else []), *arguments,
    ]  # fmt: skip


def check_model(place: str, asked: Asked) -> None:
    """Raise UserError if the plugin does not prune the model in this folder, or of this hub id, so."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise UserError(f"{place!r} is not a model that transformers knows: {str(error).splitlines()[0]}") from error
    apart_of(on_meta(config), asked, has_axes(config))


def has_axes(config: Any) -> bool:
    """Whether a model has M-RoPE."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return "mrope_section" in rope


def run_server(command: Sequence[str]) -> NoReturn:
    """Become the server, so that signals reach it."""
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
