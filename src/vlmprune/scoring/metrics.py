"""From the scores of a task's records to its figures.

A metric works on per-unit counts: a unit is what was drawn independently (a question, or the two questions of a
pair), its row holds a few counts, and the metric is a function of the summed rows. Resampling rows for a bootstrap
is then one matrix product (`bench.stats`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Metric:
    """A task's primary metric, in percent, and what else is reported beside it.

    Attributes:
        name: as shown in tables.
        counts: records to an array [units, columns] of counts.
        value: sums of the counts [..., columns] to the metric [...], NaN where it is undefined.
        details: sums [columns] to further figures by name.
    """

    name: str
    counts: Callable[[Sequence[Scored]], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]
    details: Callable[[np.ndarray], dict[str, float]]


def unparsed_share(records: Sequence[Scored]) -> float:
    """Share of replies, in percent, in which no answer of the asked kind was found."""
    return 100.0 * sum(record.extracted is None for record in records) / max(1, len(records))


def accuracy_by_category(records: Sequence[Scored]) -> dict[str, float]:
    """Plain accuracy of each category, in percent."""
    names = dict.fromkeys(record.category for record in records)
    return {
        name: 100.0 * float(np.mean([record.score for record in records if record.category == name])) for name in names
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, 100.0 * part / np.where(whole > 0, whole, 1), np.nan)


def _accuracy_counts(records: Sequence[Scored]) -> np.ndarray:
    return np.array([(record.score, 1.0) for record in records], float).reshape(-1, 2)


ACCURACY = Metric("accuracy", _accuracy_counts, lambda sums: _ratio(sums[..., 0], sums[..., 1]), lambda sums: {})


def _pope_counts(records: Sequence[Scored]) -> np.ndarray:
    """Columns: true positives, false positives, false negatives, right answers, said yes, questions.

    A reply that is neither yes nor no is wrong, and to a question whose answer is yes it is a false negative too.
    """
    rows = []
    for record in records:
        said, truth = record.extracted == "yes", record.answers[0] == "yes"
        rows.append((said and truth, said and not truth, not said and truth, record.score, said, 1))
    return np.array(rows, float).reshape(-1, 6)


def _f1(sums: np.ndarray) -> np.ndarray:
    return _ratio(2 * sums[..., 0], 2 * sums[..., 0] + sums[..., 1] + sums[..., 2])


def _pope_details(sums: np.ndarray) -> dict[str, float]:
    true, false, missed, right, yes, n = sums
    return {
        "accuracy": float(_ratio(right, n)),
        "precision": float(_ratio(true, true + false)),
        "recall": float(_ratio(true, true + missed)),
        "yes_ratio": float(_ratio(yes, n)),
    }


F1 = Metric("F1", _pope_counts, _f1, _pope_details)


def _mme_counts(records: Sequence[Scored]) -> np.ndarray:
    """One row per pair; for each category the columns right answers, questions, pairs with both right, pairs."""
    categories = sorted({record.category for record in records})
    pairs: dict[str, list[Scored]] = {}
    for record in records:
        pairs.setdefault(record.group, []).append(record)
    counts = np.zeros((len(pairs), len(categories), 4))
    for row, members in zip(counts, pairs.values(), strict=True):
        right = [member.score for member in members]
        row[categories.index(members[0].category)] = sum(right), len(right), all(right), 1
    return counts.reshape(len(pairs), -1)


def _mme_parts(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """acc and acc+ of each category, [..., categories], NaN for those that do not occur."""
    table = sums.reshape(*sums.shape[:-1], -1, 4)
    return _ratio(table[..., 0], table[..., 1]), _ratio(table[..., 2], table[..., 3])


def _mean_present(values: np.ndarray) -> np.ndarray:
    present = ~np.isnan(values)
    return np.where(present, values, 0.0).sum(-1) / np.maximum(1, present.sum(-1))


def _mme_value(sums: np.ndarray) -> np.ndarray:
    acc, acc_plus = _mme_parts(sums)
    return _mean_present((acc + acc_plus) / 2)


def _mme_details(sums: np.ndarray) -> dict[str, float]:
    acc, acc_plus = _mme_parts(sums)
    return {"accuracy": float(_mean_present(acc)), "accuracy_plus": float(_mean_present(acc_plus))}


# MME's own score of a category is acc + acc+ (at most 200); the mean over categories is halved to a percentage,
# as MME's normalised total (perception + cognition) / 2800 is.
MME = Metric("(acc + acc+) / 2", _mme_counts, _mme_value, _mme_details)

METRICS: dict[str, Metric] = {metric.name: metric for metric in (ACCURACY, F1, MME)}
