"""Whether a difference to vanilla can be chance: exact and permutation tests, and Holm's correction for many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlmprune.bench.units import AT_ONCE, Units

LEVEL = 0.05
MCNEMAR, PERMUTATION = "McNemar", "permutation"
_DRAWS = 9999


class Test(NamedTuple):
    """A two-sided test of no difference to vanilla.

    Attributes:
        p: without correction.
        name: MCNEMAR or PERMUTATION.
    """

    p: float
    name: str


def compare(units: Units, baseline: Units, seed: int = 0) -> Test | None:
    """Test a row of a table against vanilla on the same units; None where the metric is undefined.

    A share of units, as accuracy, has McNemar's exact test: of the units that only one of the two got right, each is
    as likely to be either's. Every other metric (F1, MME's, graded scores, a mean over seeds) has the permutation test
    of the metric itself: unit by unit, the two exchange what they counted at random (sign flips of the differences,
    where the metric is a mean). `seed` draws the exchanges.
    """
    if math.isnan(units.value) or math.isnan(baseline.value):
        return None
    if units.is_share and baseline.is_share:
        broken = int((~units.right & baseline.right).sum())
        repaired = int((units.right & ~baseline.right).sum())
        return Test(mcnemar(broken, repaired), MCNEMAR)
    return Test(_permutation(units, baseline, seed), PERMUTATION)


def mcnemar(broken: int, repaired: int) -> float:
    """The exact two-sided p-value of McNemar's test.

    Args:
        broken, repaired: how many units are right in the first alone, and in the second alone.
    """
    n, least = broken + repaired, min(broken, repaired)
    if 2 * least == n:
        return 1.0
    whole = math.lgamma(n + 1) - n * math.log(2)
    tail = sum(math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1)) for k in range(least + 1))
    return min(1.0, round(2.0 * tail, 12))  # the last digits are rounding, and must not show


def _permutation(units: Units, baseline: Units, seed: int) -> float:
    """p-value of the difference of the metrics when both exchange the counts of each unit with probability 1/2.

    Where the row has several seeds, all of them exchange with the one vanilla run.
    """
    seeds = len(units.counts)
    own = units.counts.transpose(1, 0, 2)
    other = np.repeat(baseline.counts, seeds, axis=0).transpose(1, 0, 2)
    gaps, times = np.unique((other - own).reshape(len(own), -1), axis=0, return_counts=True)

    def gap(shift: np.ndarray) -> np.ndarray:
        return np.abs(units.of(own.sum(0) + shift) - baseline.of(other.sum(0) - shift))

    rng, beyond = np.random.default_rng(seed), 1
    observed = float(gap(np.zeros_like(own[0])))
    step = max(1, AT_ONCE // len(times))
    for start in range(0, _DRAWS, step):
        draws = min(step, _DRAWS - start)
        exchanged = rng.binomial(times, 0.5, size=(draws, len(times))) @ gaps
        below = gap(exchanged.reshape(draws, seeds, -1)) < observed - 1e-9
        beyond += int(np.count_nonzero(~below))  # an undefined metric is not below, which is on the safe side
    return beyond / (_DRAWS + 1)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): p-values that may be read against one level however many they are."""
    order = sorted(range(len(values)), key=lambda k: values[k])
    adjusted, highest = [0.0] * len(values), 0.0
    for place, k in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - place) * values[k]))
        adjusted[k] = highest
    return adjusted
