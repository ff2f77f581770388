"""From a user's `keep` to a number of tokens."""

from __future__ import annotations

from numbers import Integral, Real

from vlmprune.core.errors import Option, UserError

Keep = float | int

_NO_BUDGET = " is not a budget: give a share above 0 and at most 1 (0.222), or a number of tokens an image (64)."


def check_keep(keep: object) -> Keep:
    """Return `keep` as a float in (0, 1] or an int >= 1, or raise UserError.

    A float is a share of an image's visual tokens, an int a number of tokens an image: `1` is one, `1.0` all of them.
    """
    budget = _budget(keep)
    if budget is None:
        raise UserError(Option("keep", keep), _NO_BUDGET)
    return budget


def _budget(keep: object) -> Keep | None:
    if not isinstance(keep, Real) or isinstance(keep, bool):
        return None
    if isinstance(keep, Integral):
        return int(keep) if int(keep) >= 1 else None
    return float(keep) if 0.0 < float(keep) <= 1.0 else None


def parse_keep(text: str) -> Keep:
    """Read a budget as the command line and recipes write it: `64` is a count, `0.222` or `1.0` a share."""
    budget = _budget(_number(text))
    if budget is None:
        raise UserError(f"{text!r}{_NO_BUDGET}")
    return budget


def _number(text: str) -> Keep | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def resolve_keep(keep: Keep, n: int) -> int:
    """Tokens to keep of `n`: `max(1, round(keep * n))` for a share, `min(keep, n)` for a count.

    Python's `round` (half to even) is what DivPrune's and HiPrune's authors use, so their counts come out the same.
    """
    if n <= 0:
        return 0
    if isinstance(keep, int):
        return min(keep, n)
    return min(n, max(1, round(keep * n)))
