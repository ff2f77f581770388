"""What a metric is: from the scores of a task's records to its figure.

A metric works on counts of units. A unit is what was drawn independently: a question, or all questions that are scored
together (the pair of an MME image, the rotations of a circular question, the set of a HallusionBench picture). Its row
holds a few counts, and the metric is a function of the summed rows, so resampling units for a bootstrap is one matrix
product (`bench.stats`).

A score that is not known yet, because it is a judge's to give, is NaN. It makes the whole figure NaN, which tables show
as "not measured": a figure of the judged part alone would be another figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Scored(Protocol):
    """What a metric reads from a record."""

    @property
    def group(self) -> str: ...
    @property
    def category(self) -> str: ...
    @property
    def answers(self) -> tuple[str, ...]: ...
    @property
    def extracted(self) -> str | None: ...
    @property
    def score(self) -> float: ...
    @property
    def facts(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Metric:
    """A task's primary metric, in percent, and what else is reported beside it.

    Attributes:
        name: as shown in tables.
        counts: records to an array [units, columns] of counts.
        value: sums of the counts [..., columns] to the metric [...], NaN where it is undefined.
        details: sums [columns] to further figures by name, in percent unless `scoring.metrics` says otherwise.
    """

    name: str
    counts: Callable[[Sequence[Scored]], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]
    details: Callable[[np.ndarray], dict[str, float]]


def unparsed_share(records: Sequence[Scored]) -> float:
    """Share of replies, in percent, in which no answer of the asked kind was found; NaN while a judge is awaited."""
    if any(math.isnan(record.score) for record in records):
        return math.nan
    return 100.0 * sum(record.extracted is None for record in records) / max(1, len(records))


def accuracy_by_category(records: Sequence[Scored]) -> dict[str, float]:
    """Mean score of each category, in percent."""
    scores: dict[str, list[float]] = {}
    for record in records:
        scores.setdefault(record.category, []).append(record.score)
    return {name: 100.0 * float(np.mean(of)) for name, of in scores.items()}


def by_group(records: Sequence[Scored]) -> list[list[Scored]]:
    """The records of each group, in order of their first."""
    groups: dict[str, list[Scored]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    return list(groups.values())


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """100 * part / whole, NaN where the whole is empty."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, 100.0 * part / np.where(whole > 0, whole, 1), np.nan)


def no_details(sums: np.ndarray) -> dict[str, float]:
    return {}
