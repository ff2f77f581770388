"""What a request asks of vlmprune, and which of that a server allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vlmprune.core.budget import Keep, check_keep
from vlmprune.core.errors import Option, UserError
from vlmprune.core.recipe import Recipe

KEEP, QUERY = "vlmprune_keep", "vlmprune_query"
LATEST = "vlmprune_latest"  # not of a client: how many of a request's images are the latest
LONGEST = 1 << 14  # characters of a question; each token is compared with each of an image


@dataclass(frozen=True)
class Allowed:
    """Which fields of its own a server takes in a request."""

    keep: bool = False
    query: bool = False


@dataclass(frozen=True)
class Wanted:
    """The fields of one request that are for vlmprune.

    Attributes:
        keep: the budget instead of the server's.
        query: what to compare the images with instead of the last question.
    """

    keep: Keep | None = None
    query: str | None = None


def take_wanted(body: dict[str, Any], allowed: Allowed) -> Wanted:
    """Take vlmprune's fields out of a request's body; transformers' server would refuse them.

    Raises:
        UserError: the server was not started with such a field, or it has no sensible value.
    """
    keep, query = body.pop(KEEP, None), body.pop(QUERY, None)
    _check_allowed({KEEP: keep}, allowed.keep, "--allow-request-keep")
    _check_allowed({QUERY: query}, allowed.query, "--allow-request-query")
    if keep is not None:
        try:
            keep = check_keep(keep)
        except UserError:
            raise UserError(
                f"{KEEP} must be a share above 0 and at most 1 (0.25), or a number of tokens per image (64), not "
                f"{_short(keep)}."
            ) from None
    return Wanted(keep, check_query(query))


def check_query(query: object) -> str | None:
    """A question as it is, None where there is none; UserError for what is none, or too long to be compared with."""
    if query is None:
        return None
    if not (isinstance(query, str) and query.strip() and _is_text(query)):
        raise UserError(f"{QUERY} must be the text that images are compared with, not {_short(query)}.")
    if len(query) > LONGEST:
        raise UserError(
            f"Images are compared with a question of at most {LONGEST} characters, and this one has {len(query)}: give "
            f"{QUERY}, a shorter one."
        )
    return query


def _is_text(value: str) -> bool:
    """Whether it can be written out; JSON can hold halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_request_keep(recipe: Recipe) -> None:
    """Raise UserError if requests cannot set the budget of a server's recipe."""
    if not (len(recipe.stages) == 1 and recipe.stages[0].method.budgeted):
        raise UserError(
            f"Requests cannot set the budget of {recipe}: leave out ",
            Option("allow_request_keep", True),
            ", or serve a single method that takes a budget.",
        )


def check_request_query(recipe: Recipe, reads: bool) -> None:
    """Raise UserError if no method of a server's recipe reads what requests could set.

    Args:
        reads: whether one does, on the server's model.
    """
    if not reads:
        raise UserError(
            f"No method in {recipe} reads the question: leave out ", Option("allow_request_query", True), "."
        )


def check_keeps_all(recipe: Recipe) -> None:
    """Raise UserError if no budget makes a recipe keep every token, which a canary asks of the engine."""
    for stage in recipe.stages:
        if not stage.method.budgeted:
            raise UserError(
                f"The canary has the engine keep all tokens, and {stage.method.name} takes no budget: leave out ",
                Option("canary", 0.02), ", or serve with ", Option("engine", "transformers"), ".",
            )  # fmt: skip


def under(recipe: Recipe, keep: Keep | None) -> Recipe:
    """A server's recipe with the budget of a request, if that has one."""
    return recipe if keep is None else Recipe(tuple(replace(stage, keep=keep) for stage in recipe.stages))


def check_template_options(options: object) -> None:
    """Refuse options of the chat template other than whether to think: some are templates, files, or addresses.

    Raises:
        UserError: there are others.
    """
    if options is None or options == {}:
        return
    thinks = isinstance(options, Mapping) and {*options} == {"enable_thinking"}
    if not thinks or not isinstance(options["enable_thinking"], bool):  # type: ignore[index]
        raise UserError('chat_template_kwargs may only be {"enable_thinking": true} or {"enable_thinking": false}.')


def torch_seed(seed: object) -> int | None:
    """A request's seed for drawing tokens, or UserError."""
    if seed is None:
        return None
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 63:
        raise UserError(f"seed must be a whole number from 0 to {(1 << 63) - 1}, not {_short(seed)}.")
    return seed


def _check_allowed(field: Mapping[str, object], allowed: bool, switch: str) -> None:
    for name, value in field.items():
        if value is not None and not allowed:
            raise UserError(f"This server takes no {name}: whoever runs it can start it with {switch}.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
