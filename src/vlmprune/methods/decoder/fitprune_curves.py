"""Curves of FitPrune: the share of an image's tokens that enters each decoder layer, and how they are read and fitted
to another budget and depth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

from vlmprune.author import UserError

Curve = tuple[float, ...]

TOKENS = 576

# How many tokens each layer of LLaVA-1.5-7B deletes, by the percentage of operations that this saves.
# Source: https://github.com/ywh187/FitPrune, commit d28e418.
DELETED: dict[int, tuple[int, ...]] = {
    10: (
        0, 0, 1, 2, 1, 0, 1, 4, 5, 5, 11, 4, 2, 2, 0, 0,
        1, 1, 2, 4, 2, 10, 1, 1, 1, 2, 1, 1, 0, 1, 0, 0,
    ),
    20: (
        0, 0, 3, 3, 1, 1, 4, 16, 14, 15, 24, 4, 2, 3, 2, 0,
        6, 0, 5, 13, 4, 19, 2, 1, 1, 1, 1, 1, 2, 1, 0, 0,
    ),
    30: (
        0, 0, 7, 6, 4, 5, 16, 40, 24, 21, 24, 4, 2, 3, 4, 0,
        16, 0, 11, 26, 6, 32, 3, 1, 0, 1, 2, 2, 4, 0, 0, 0,
    ),
    40: (
        0, 1, 21, 13, 14, 11, 41, 53, 29, 15, 14, 5, 1, 4, 5, 1,
        26, 1, 13, 28, 6, 27, 2, 1, 0, 0, 1, 1, 2, 0, 0, 0,
    ),
    50: (
        3, 7, 49, 24, 29, 17, 59, 41, 26, 8, 10, 6, 2, 5, 7, 2,
        30, 3, 13, 27, 5, 23, 2, 1, 0, 0, 1, 1, 2, 0, 0, 0,
    ),
    55: (
        6, 17, 69, 31, 34, 19, 59, 30, 23, 6, 8, 7, 2, 5, 8, 2,
        29, 4, 12, 25, 4, 19, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0,
    ),
    60: (
        14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4,
        26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0,
    ),
    70: (
        48, 79, 118, 41, 33, 17, 36, 9, 9, 2, 3, 2, 1, 3, 4, 8,
        18, 7, 8, 20, 4, 13, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0,
    ),
    80: (
        128, 127, 118, 35, 26, 8, 13, 3, 2, 1, 0, 0, 0, 2, 1, 8,
        7, 8, 5, 11, 2, 6, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0,
    ),
    90: (
        262, 153, 80, 19, 13, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1,
        1, 2, 1, 2, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0,
    ),
}  # fmt: skip


def mean(curve: Sequence[float]) -> float:
    return sum(curve) / len(curve)


def published() -> list[Curve]:
    """The authors' recipes, as curves of the share that enters each layer."""
    return [tuple(1 - gone / TOKENS for gone in accumulate(deleted[:-1], initial=0)) for deleted in DELETED.values()]


def read_curve(recipe: str | Sequence[float]) -> Curve:
    """A curve from its numbers, or from the list under "shares" of a JSON file.

    Raises:
        UserError: the file or the list does not exist, or the numbers are not a curve.
    """
    shares: object = recipe
    if isinstance(recipe, str):
        try:
            shares = json.loads(Path(recipe).read_text())["shares"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f'fitprune: recipe={recipe!r} must be a JSON file with a list under "shares".') from error
    numbers = shares if isinstance(shares, list | tuple) else []
    good = len(numbers) > 1 and all(isinstance(share, int | float) for share in numbers)
    if not good or numbers[0] != 1 or numbers[-1] < 0 or any(a < b for a, b in pairwise(numbers)):
        raise UserError(
            "fitprune: a recipe is the share of tokens that enters each decoder layer: first 1.0, then never more than "
            f"before (got {recipe!r})."
        )
    return tuple(float(share) for share in numbers)


def entering(curves: list[Curve], share: float, depth: int) -> Curve:
    """The curve whose mean is `share`, between the two of `curves` that are nearest, for a decoder of `depth` layers.

    Below the lowest curve it is interpolated towards no tokens after layer 0, above the highest towards all tokens.
    """
    length = len(curves[0])
    ordered = sorted([(1.0, *[0.0] * (length - 1)), *curves, (1.0,) * length], key=mean)
    if share <= mean(ordered[0]):
        return resampled(ordered[0], depth)
    low, high = next((a, b) for a, b in pairwise(ordered) if mean(b) >= min(share, 1.0))
    part = (share - mean(low)) / (mean(high) - mean(low))
    return resampled([a + part * (b - a) for a, b in zip(low, high, strict=True)], depth)


def resampled(curve: Sequence[float], depth: int) -> Curve:
    """The curve at another depth: each layer takes the mean over its part of the depth, so the overall mean stays."""
    if depth == len(curve):
        return tuple(curve)
    sums = [0.0, *accumulate(curve)]

    def until(place: float) -> float:
        whole = min(int(place), len(curve) - 1)
        return sums[whole] + (place - whole) * curve[whole]

    step = len(curve) / depth
    return tuple((until((layer + 1) * step) - until(layer * step)) / step for layer in range(depth))
