"""From a user's `keep` to a number of tokens."""

from __future__ import annotations

from numbers import Integral, Real

from vlmprune.core.errors import UserError

Keep = float | int


def check_keep(keep: object) -> Keep:
    """Return `keep` as a float in (0, 1] or an int >= 1, or raise UserError.

    A float is a share of an image's visual tokens, an int a number of tokens an image: `1` is one, `1.0` all of them.
    """
    number = isinstance(keep, Real) and not isinstance(keep, bool)
    if number and isinstance(keep, Integral) and int(keep) >= 1:
        return int(keep)
    if number and not isinstance(keep, Integral) and 0.0 < float(keep) <= 1.0:  # type: ignore[arg-type]
        return float(keep)  # type: ignore[arg-type]
    raise UserError(
        f"keep={keep!r} is not a budget: give a share above 0 and at most 1 (0.222), "
        "or a number of tokens an image (64)."
    )


def parse_keep(text: str) -> Keep:
    """Read a budget as the command line and recipes write it: `64` is a count, `0.222` or `1.0` a share."""
    try:
        value: Keep = int(text)
    except ValueError:
        try:
            value = float(text)
        except ValueError:
            raise UserError(
                f"{text!r} is not a budget: write a share such as 0.222 or a number of tokens such as 64."
            ) from None
    return check_keep(value)


def resolve_keep(keep: Keep, n: int) -> int:
    """Tokens to keep of `n`: `max(1, round(keep * n))` for a share, `min(keep, n)` for a count.

    Python's `round` (half to even) is what DivPrune's and HiPrune's authors use, so their counts come out the same.
    """
    if n <= 0:
        return 0
    if isinstance(keep, int):
        return min(keep, n)
    return min(n, max(1, round(keep * n)))
