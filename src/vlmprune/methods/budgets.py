"""Ways to count budgets that several methods share."""

from __future__ import annotations

from collections.abc import Sequence

from vlmprune.author import Keep, UserError, resolve_keep


def average_too_small(name: str, average: float, first: int, depth: int) -> UserError:
    """The error for an average over `depth` layers that is too low, as the `first` layers see every token anyway."""
    least = (first * 1000 // depth + 1) / 1000  # the first number of three digits above first / depth
    earlier = " or an earlier layer" if first > 1 else ""
    return UserError(
        f"{name}: the first {first} of {depth} layers see every token, so an average of {average:.3g} cannot be met: "
        f"give a budget of {least} or more{earlier}."
    )


def rounded_down(keep: Keep, n: int) -> int:
    """A budget as UniPruneBench counts it: a share of n tokens is rounded down, to at least one token."""
    return max(1, int(n * keep)) if isinstance(keep, float) else resolve_keep(keep, n)


def ratio_for(average: float, bounds: Sequence[int]) -> float:
    """The factor by which each of several acts must reduce the tokens, so that `average` of them enter a layer.

    Args:
        average: a share of the tokens, above the share of layers that see every token.
        bounds: for each act in turn, the first layer with fewer tokens; then the number of layers.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        ratio = (low + high) / 2
        bands = (ratio ** (act + 1) * (bounds[act + 1] - bounds[act]) for act in range(len(bounds) - 1))
        low, high = (ratio, high) if (bounds[0] + sum(bands)) / bounds[-1] < average else (low, ratio)
    return high
