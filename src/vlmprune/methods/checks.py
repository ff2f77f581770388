"""Checks of hyperparameters that several methods share. Each raises UserError with one sentence."""

from __future__ import annotations

from vlmprune.core.errors import UserError
from vlmprune.core.method import Method

PAPER, OFFICIAL = "paper", "official"


def one_of(method: Method, option: str, *allowed: str | None) -> None:
    """`option` is one of the names in `allowed`."""
    value = getattr(method, option)
    if value not in allowed:
        names = " or ".join(repr(name) for name in allowed)
        raise UserError(f"{method.name}: {option}={value!r} must be {names}.")


def whole(method: Method, option: str, least: int = 0) -> None:
    """`option` is a whole number of at least `least`."""
    value = getattr(method, option)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{method.name}: {option}={value!r} must be a whole number of at least {least}.")


def share(method: Method, option: str) -> None:
    """`option` is a number from 0 to 1."""
    value = getattr(method, option)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise UserError(f"{method.name}: {option}={value!r} must be a number from 0 to 1.")
