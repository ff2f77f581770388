"""Intervals of a metric and of its difference to vanilla, which stay open where every answer is right.

A share of units, as accuracy, has Agresti and Coull's interval (1998): Wilson's centre, a little wider than Wilson's at
the ends, where Wilson's own covers too little on few questions (91.7 % of the time at 98 % and n = 24).

Everything else has Gaffke's (2005), of which Clopper and Pearson's exact interval is the case of a share: the units get
random weights, Dirichlet(1, ..., 1) as in Rubin's Bayesian bootstrap (1981), and so does one unit more, of which
nothing is known. It is all wrong for the lower bound and all right for the upper one, so the interval of 24 right of 24
reaches down as far as one unseen question allows. In simulations
it covers the truth 93 to 100 % of the time, most near the ends.

Draws are seeded, so tables are the same on every run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vlmprune.bench.units import AT_ONCE, Units

DRAWS = 2000
LEVEL = 95.0
_Z = 1.959964  # of the normal distribution at 97.5 %
_TAIL = (100.0 - LEVEL) / 2


class Estimate(NamedTuple):
    """A figure and its 95 % interval; NaN where the figure is undefined, as an F1 without any positive."""

    value: float
    low: float
    high: float


UNDEFINED = Estimate(float("nan"), float("nan"), float("nan"))


def estimate(units: Units, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The metric with its interval, percent: Agresti and Coull's of a share, else Gaffke's."""
    value = units.value
    if math.isnan(value):
        return UNDEFINED
    if units.is_share:
        return share_interval(int(units.right.sum()), units.n)
    seeds = len(units.counts)
    worst, best = (np.tile(row, (seeds, 1)) for row in (units.worst, units.best))
    return _gaffke(value, units.counts, units.of, worst, best, draws, seed)


def difference(units: Units, baseline: Units, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The metric minus the baseline's on the same units, in points, with Gaffke's interval of both weighted together.

    The unit of which nothing is known is right in one and wrong in the other.

    Raises:
        ValueError: the units are not the same.
    """
    value = units.value - baseline.value
    if math.isnan(value):
        return UNDEFINED
    return _gaffke(value, *_paired(units, baseline), draws, seed)


def mean_difference(units: Sequence[Units], baselines: Sequence[Units], draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The mean over tasks of `difference`, with an interval of the same kind: each task has its own unknown unit.

    Args:
        units, baselines: by task; each pair has the same units.
    """
    value = sum(own.value - other.value for own, other in zip(units, baselines, strict=True)) / len(units)
    if math.isnan(value):
        return UNDEFINED
    pairs = enumerate(zip(units, baselines, strict=True))
    found = [_bounds(*_paired(own, other), draws, (seed, number)) for number, (own, other) in pairs]
    return _of_tasks(value, found)


def _of_tasks(value: float, found: Sequence[tuple[np.ndarray, np.ndarray]]) -> Estimate:
    """A mean over tasks, from the bounds of each task in each draw."""
    lows, highs = (np.mean(of_tasks, axis=0) for of_tasks in zip(*found, strict=True))
    low, high = float(np.percentile(lows, _TAIL)), float(np.percentile(highs, 100.0 - _TAIL))
    return Estimate(value, min(low, value), max(high, value))


def mean_estimate(units: Sequence[Units], draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The mean of the metric over tasks, with Gaffke's interval: each task has its own unknown unit.

    Args:
        units: by task.
    """
    value = sum(own.value for own in units) / len(units)
    if math.isnan(value):
        return UNDEFINED
    found = []
    for number, own in enumerate(units):
        worst, best = (np.tile(row, (len(own.counts), 1)) for row in (own.worst, own.best))
        found.append(_bounds(own.counts, own.of, worst, best, draws, (seed, number)))
    return _of_tasks(value, found)


Of = Callable[[np.ndarray], np.ndarray]  # from sums [..., seeds, columns] to the figure [...]


def _paired(units: Units, baseline: Units) -> tuple[np.ndarray, Of, np.ndarray, np.ndarray]:
    """Both as one row of counts, their difference, and the unit of which nothing is known at its extremes."""
    if units.counts.shape[1:] != baseline.counts.shape[1:]:
        raise ValueError(f"A paired difference needs the same units: {units.counts.shape}, {baseline.counts.shape}.")
    seeds, others = len(units.counts), len(baseline.counts)

    def of(sums: np.ndarray) -> np.ndarray:
        return units.of(sums[..., :seeds, :]) - baseline.of(sums[..., seeds:, :])

    def row(own: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.concatenate([np.tile(own, (seeds, 1)), np.tile(other, (others, 1))])

    both = np.concatenate([units.counts, baseline.counts])
    return both, of, row(units.worst, baseline.best), row(units.best, baseline.worst)


def share_interval(right: int, n: int) -> Estimate:
    """The share of `right` units of `n` with Agresti and Coull's interval, percent."""
    centre = (right + _Z**2 / 2) / (n + _Z**2)
    half = _Z * math.sqrt(centre * (1 - centre) / (n + _Z**2))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Estimate(100.0 * right / n, 100.0 * low, 100.0 * high)


def _gaffke(
    value: float, counts: np.ndarray, of: Of, worst: np.ndarray, best: np.ndarray, draws: int, seed: int
) -> Estimate:
    """A figure's interval.

    Args:
        value: the figure.
        counts: [seeds, units, columns].
        of: sums to the figure.
        worst, best: [seeds, columns] the unit of which nothing is known, at its extremes.
    """
    lows, highs = _bounds(counts, of, worst, best, draws, seed)
    low = max(float(of(worst)), float(np.percentile(lows, _TAIL)))  # rounding may go beyond the ends
    high = min(float(of(best)), float(np.percentile(highs, 100.0 - _TAIL)))
    return Estimate(value, min(low, value), max(high, value))


def _bounds(
    counts: np.ndarray, of: Of, worst: np.ndarray, best: np.ndarray, draws: int, seed: int | tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The figure in each draw, with the unknown unit at its worst and at its best: [draws] each."""
    lows, highs = [], []
    for sums, unseen in weighted_sums(counts, draws, seed):
        lows.append(of(sums + unseen * worst))
        highs.append(of(sums + unseen * best))
    return np.concatenate(lows), np.concatenate(highs)


def weighted_sums(
    counts: np.ndarray, draws: int, seed: int | tuple[int, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sums of counts under Dirichlet weights of the units and of one unit more; the weights have the mean 1.

    Equal units share one Gamma weight, which is the same in distribution and much faster on large tasks.

    Args:
        counts: [seeds, units, columns].

    Yields:
        Sums [draws, seeds, columns] without the further unit, and its weight [draws, 1, 1], for some draws at a time.
    """
    seeds, n, columns = counts.shape
    kinds, times = np.unique(counts.transpose(1, 0, 2).reshape(n, -1), axis=0, return_counts=True)
    shape = np.append(times, 1).astype(float)
    rng = np.random.default_rng(seed)
    step = max(1, AT_ONCE // len(shape))
    for start in range(0, draws, step):
        weights = rng.standard_gamma(shape, size=(min(step, draws - start), len(shape)))
        weights *= (n + 1) / weights.sum(1, keepdims=True)
        yield (weights[:, :-1] @ kinds).reshape(-1, seeds, columns), weights[:, -1, None, None]
