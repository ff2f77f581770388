"""Bootstrap intervals over the units of a metric (`scoring.metrics`). Seeded, so tables are the same on every run."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from vlmprune.scoring.metrics import Metric

DRAWS = 2000
LEVEL = 95.0


class Estimate(NamedTuple):
    """A figure and its 95 % interval; NaN where the figure is undefined, as an F1 without any positive."""

    value: float
    low: float
    high: float


@lru_cache(maxsize=8)
def _weights(units: int, draws: int, seed: int) -> np.ndarray:
    """How often each unit is drawn in each resample of as many units, float64 [draws, units]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1.0 / units), size=draws).astype(float)


def _interval(values: np.ndarray) -> tuple[float, float]:
    if np.isnan(values).all():
        return float("nan"), float("nan")
    tail = (100.0 - LEVEL) / 2
    low, high = np.nanpercentile(values, (tail, 100.0 - tail))
    return float(low), float(high)


def estimate(metric: Metric, counts: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The metric with its percentile bootstrap interval.

    Args:
        metric: what is computed from summed counts.
        counts: [units, columns], as `metric.counts` gives them.
    """
    value = float(metric.value(counts.sum(0)))
    low, high = _interval(metric.value(_weights(len(counts), draws, seed) @ counts))
    return Estimate(value, low, high)


def difference(metric: Metric, counts: np.ndarray, baseline: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The metric minus the baseline's on the same units, with an interval from resampling both together.

    Args:
        counts, baseline: [units, columns], row by row of the same units.
    """
    if counts.shape != baseline.shape:
        raise ValueError(f"A paired difference needs the same units: {counts.shape} and {baseline.shape}.")
    weights = _weights(len(counts), draws, seed)
    value = float(metric.value(counts.sum(0)) - metric.value(baseline.sum(0)))
    low, high = _interval(metric.value(weights @ counts) - metric.value(weights @ baseline))
    return Estimate(value, low, high)
