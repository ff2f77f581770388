"""How budgets are counted, where several methods count them alike."""

from __future__ import annotations

from collections.abc import Sequence

from vlmprune.author import Keep, UserError, resolve_keep


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


def ratio_for(average: float, bounds: Sequence[int]) -> float:
    """By what every act of several multiplies the tokens, so that a layer is entered by `average` of them.

    Args:
        average: a share, above that of the layers which see every token.
        bounds: the first layer with fewer tokens, of each act in turn, and the number of layers.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        ratio = (low + high) / 2
        bands = (ratio ** (act + 1) * (bounds[act + 1] - bounds[act]) for act in range(len(bounds) - 1))
        low, high = (ratio, high) if (bounds[0] + sum(bands)) / bounds[-1] < average else (low, ratio)
    return high
