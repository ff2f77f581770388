"""Budgets for each frame of a video: which methods can hold to one, and the act that does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

from vlmprune.core.act import UNTOLD, Act
from vlmprune.core.budget import OWN, ByFrame, Keep, resolve_keep, written_budget
from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.options import check_options
from vlmprune.core.roles import changes_encoding

_SHARES, _COUNTS, _TOKENS = (0.26, 0.5), (3,), 10  # budgets and a frame that tell methods of another meaning


def framed(method: Method, keep: ByFrame, make: Callable[[Keep], Sequence[Act]], kind: str = OWN) -> Act:
    """The act of a method that selects among the tokens of each frame by itself.

    Args:
        make: the method's acts under a budget of its own.
        kind: what the budget counts, one of `core.budget.BUDGETS`.

    Raises:
        UserError: the method has no such act.
    """
    if kind != OWN:
        raise UserError(
            f"A budget of {written_budget(keep, kind)} is unclear, because {keep} says what is left of each frame: "
            f"leave out what it counts ({kind})."
        )
    if (reason := _reason(method, make)) is not None:
        raise UserError(
            f"{method.name} cannot keep {keep}, because {reason}: give one budget for the whole video, or choose a "
            "method that selects among the tokens of a frame, such as divprune."
        )
    return replace(make(_SHARES[0])[0], keep=UNTOLD, by_frame=keep)


def _reason(method: Method, make: Callable[[Keep], Sequence[Act]]) -> str | None:
    """Why a method cannot hold to a number of tokens in each frame; None if it can."""
    if changes_encoding(method):
        return "it acts before or inside the encoder"
    if method.per == "image":
        return "per='image' lets all tokens of a video compete"
    by_itself = copy.copy(method)
    by_itself.per = "frame"
    try:
        check_options(by_itself)
    except UserError:
        return "it does not select frame by frame"
    if not method.exact:
        return "the image or the authors' code decides how many tokens stay"
    try:
        plans = [make(keep) for keep in (*_SHARES, *_COUNTS)]
    except UserError:
        return "its budget is not a number of tokens"
    if any(len(plan) != 1 or plan[0].layers != plans[0][0].layers for plan in plans):
        return "it divides its budget among several decoder layers by a rule of its own"
    if any(plan[0].of(_TOKENS).budget(_TOKENS, _TOKENS) != resolve_keep(plan[0].keep, _TOKENS) for plan in plans):
        return "its budget has another meaning than the tokens that are left"
    return None
