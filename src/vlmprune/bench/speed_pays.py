"""From how many visual tokens on a method pays for itself on this machine, by batch and length of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlmprune.bench.speed_store import PointResult
from vlmprune.bench.speed_table import NONE, Sheet, Spread, speedup
from vlmprune.bench.store import VANILLA


def conditions(result: PointResult) -> tuple[object, ...]:
    """Points may stand in one break-even table where only size and batch differ."""
    point = result.point
    return (point.model, point.weights, point.dtype, point.attention, point.device, point.recipes, point.preset,
            point.text, point.positions, point.seed, tuple(sorted(point.versions.items())))  # fmt: skip


def break_even(results: Sequence[PointResult]) -> list[Sheet]:
    """From how many visual tokens on each method is faster, by batch and length of the answer."""
    first = results[0].point
    columns = sorted({(result.point.batch, length) for result in results for length in result.lengths})
    sizes = sorted({result.point.visual for result in results})
    if len(sizes) < 2:
        return []
    lines = []
    for recipe in first.recipes:
        if recipe != VANILLA:
            lines.append([recipe, *(pays_from(_speedups(results, recipe, *column)) for column in columns)])
    head = ["recipe", *(f"batch {batch}, {length} new" for batch, length in columns)]
    notes = [
        f"Visual tokens from which on a recipe is faster than the unpruned model at every larger size, of "
        f"{', '.join(map(str, sizes))} that were measured, by the median over the turns; ~ where a turn at that size "
        "says otherwise, <= where it pays at the smallest, never where it does not pay at the largest. Time alone is "
        "compared: what a recipe costs in accuracy is not in this table."
    ]
    return [Sheet(f"{first.model}: from how many visual tokens pruning pays, on {first.device}", head, lines, notes)]


def _speedups(results: Sequence[PointResult], recipe: str, batch: int, length: int) -> dict[int, Spread]:
    """By visual tokens."""
    return {
        result.point.visual: speedup(result.variants[VANILLA], result.variants[recipe], length)
        for result in results
        if result.point.batch == batch and length in result.lengths
    }


def pays_from(speedups: Mapping[int, Spread]) -> str:
    """The smallest size from which on all medians are above 1, in words."""
    sizes = sorted(speedups)
    if not sizes:
        return NONE
    paying: int | None = None
    for size in reversed(sizes):
        if speedups[size].median <= 1:
            break
        paying = size
    if paying is None:
        return f"never (to {sizes[-1]})"
    sign = "~" if speedups[paying].low <= 1 else ""
    return f"{sign}{'<= ' if paying == sizes[0] else ''}{paying}"
