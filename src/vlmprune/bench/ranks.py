"""Ranks and means of methods under random weights of the questions, the same for all methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlmprune.bench.stats import DRAWS, LEVEL, weighted_sums
from vlmprune.bench.units import Units

REL, ABS = "rel_mean", "abs_mean"
_SAME = 1e-9  # percent; figures closer than this are equal


@dataclass(frozen=True)
class Standing:
    """One method among those of a budget.

    Attributes:
        best: share of the draws, percent, in which it has the best mean; methods that are equal share the draw.
        rank: its mean rank; 1 is the best, and equal methods share the mean of their ranks.
        low, high: of its rank in 95 % of the draws.
    """

    best: float
    rank: float
    low: float
    high: float


def standings(
    methods: Sequence[Sequence[Units]],
    vanilla: Sequence[Units],
    measure: str = REL,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Standing]:
    """Rank methods by the mean over tasks, in many draws of the questions (`drawn_means`).

    Args:
        methods: of each method, its units by task.
        vanilla: by task.
        measure: REL for the mean of the ratios to vanilla, ABS for the mean of the metrics.
    """
    return _standings(drawn_means(methods, vanilla, measure, draws, seed))


def drawn_means(
    methods: Sequence[Sequence[Units]],
    vanilla: Sequence[Units],
    measure: str = REL,
    draws: int = DRAWS,
    seed: int = 0,
) -> np.ndarray:
    """The mean over tasks of each method in many draws of the questions: [draws, methods], percent.

    In each draw the units of every task get random weights (Rubin's Bayesian bootstrap), the same ones for all methods
    and for vanilla. Tasks are fixed: the means say nothing of other tasks. A method's seeds count by their mean.

    Args:
        methods, vanilla, measure: as in `standings`.
    """
    means = np.zeros((draws, len(methods)))
    for number, base in enumerate(vanilla):
        rows = [*(method[number] for method in methods), base]
        counts = np.concatenate([row.counts for row in rows])
        sums = np.concatenate([part for part, _ in weighted_sums(counts, draws, (seed, number))])
        ends = np.cumsum([len(row.counts) for row in rows])
        values = [row.of(sums[:, end - len(row.counts) : end]) for row, end in zip(rows, ends, strict=True)]
        shares = np.stack(values[:-1], axis=1)
        means += 100.0 * shares / values[-1][:, None] if measure == REL else shares
    return means / len(vanilla)


def spearman(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation: of values [..., n] with others [n], [...]; NaN where either are all equal.

    Equal values share the mean of their ranks.
    """
    own, their = (np.atleast_2d(_ranks(row)) for row in (values, others))
    own, their = (rows - rows.mean(-1, keepdims=True) for rows in (own, their))
    size = np.sqrt((own**2).sum(-1) * (their**2).sum(-1))
    found = np.divide((own * their).sum(-1), size, out=np.full(size.shape, np.nan), where=size > 0)
    return found.reshape(values.shape[:-1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Of values [..., n], 1 for the largest; equal values share the mean of their ranks."""
    gaps = values[..., None, :] - values[..., :, None]
    return 1 + (gaps > _SAME).sum(-1) + ((np.abs(gaps) <= _SAME).sum(-1) - 1) / 2


def _standings(means: np.ndarray) -> list[Standing]:
    """Of means [draws, methods]."""
    ranks = np.stack([_ranks(draw) for draw in means])
    first = means >= means.max(1, keepdims=True) - _SAME
    best = 100.0 * (first / first.sum(1, keepdims=True)).mean(0)
    tail = (100.0 - LEVEL) / 2
    low, high = np.percentile(ranks, (tail, 100.0 - tail), axis=0)
    figures = zip(best, ranks.mean(0), low, high, strict=True)
    return [Standing(float(b), float(mean), float(least), float(most)) for b, mean, least, most in figures]
