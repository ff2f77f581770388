"""Checks of hyperparameters that several methods share. Each raises UserError with one sentence."""

from __future__ import annotations

import math

from vlmprune.author import Keep, Method, UserError, resolve_keep

PAPER, OFFICIAL, UNIPRUNE = "paper", "official", "uniprune"


def one_of(method: Method, option: str, *allowed: object) -> None:
    """`option` is one of `allowed`."""
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


def positive(method: Method, option: str, or_zero: bool = False) -> None:
    """`option` is a number above 0 (or 0 itself)."""
    value = getattr(method, option)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < 0 or (value == 0 and not or_zero):
        raise UserError(f"{method.name}: {option}={value!r} must be a number {'from' if or_zero else 'above'} 0.")


def true_or_false(method: Method, option: str) -> None:
    """`option` is True or False."""
    value = getattr(method, option)
    if not isinstance(value, bool):
        raise UserError(f"{method.name}: {option}={value!r} must be True or False.")


def share_below_one(method: Method, option: str) -> None:
    """`option` is a number from 0 to below 1."""
    value = getattr(method, option)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise UserError(f"{method.name}: {option}={value!r} must be a number from 0 to below 1.")


def average_too_small(name: str, average: float, first: int, depth: int) -> UserError:
    """The error for a budget that is an average over `depth` layers, the `first` of which see every token anyway."""
    least = (first * 1000 // depth + 1) / 1000  # the first number of three digits above first / depth
    earlier = " or an earlier layer" if first > 1 else ""
    return UserError(
        f"{name}: the {first} of {depth} layers before it see every token, so that an average of {average:.3g} cannot "
        f"be met: give a budget of {least} or more{earlier}."
    )


def rounded_down(keep: Keep, n: int) -> int:
    """A budget as UniPruneBench counts: of n tokens a share's whole part, at least one."""
    return max(1, int(n * keep)) if isinstance(keep, float) else resolve_keep(keep, n)
