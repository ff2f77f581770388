"""MME (Fu et al., arXiv 2306.13394): two questions about each picture, and a pair with both right counts extra.

A category's score is acc + acc+, at most 200: the percentage of right questions and that of pairs with both right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlmprune.core.errors import UserError
from vlmprune.scoring.metric import Metric, Scored, by_group, ratio

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
OFFICIAL = (*PERCEPTION, *COGNITION)


def _counts(records: Sequence[Scored], categories: Sequence[str]) -> np.ndarray:
    """One row per pair; for each category the columns right answers, questions, pairs with both right, pairs."""
    pairs = by_group(records)
    counts = np.zeros((len(pairs), len(categories), 4))
    for row, members in zip(counts, pairs, strict=True):
        right = [member.score for member in members]
        row[categories.index(members[0].category)] = sum(right), len(right), float(np.min(right)), 1
    return counts.reshape(len(pairs), -1)


def _parts(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """acc and acc+ of each category, [..., categories], NaN for those that do not occur."""
    table = sums.reshape(*sums.shape[:-1], -1, 4)
    return ratio(table[..., 0], table[..., 1]), ratio(table[..., 2], table[..., 3])


def _mean_present(values: np.ndarray) -> np.ndarray:
    present = ~np.isnan(values)
    return np.where(present, values, 0.0).sum(-1) / np.maximum(1, present.sum(-1))


def _mean(sums: np.ndarray) -> np.ndarray:
    acc, acc_plus = _parts(sums)
    return _mean_present((acc + acc_plus) / 2)


def _mean_details(sums: np.ndarray) -> dict[str, float]:
    acc, acc_plus = _parts(sums)
    return {"accuracy": float(_mean_present(acc)), "accuracy_plus": float(_mean_present(acc_plus))}


def _own_counts(records: Sequence[Scored]) -> np.ndarray:
    return _counts(records, sorted({record.category for record in records}))


def _official_counts(records: Sequence[Scored]) -> np.ndarray:
    if unknown := sorted({record.category for record in records} - set(OFFICIAL)):
        raise UserError(f"MME has no category {unknown[0]!r}: its categories are {', '.join(OFFICIAL)}.")
    return _counts(records, OFFICIAL)


def _total_details(sums: np.ndarray) -> dict[str, float]:
    acc, acc_plus = _parts(sums)
    scores, split = acc + acc_plus, len(PERCEPTION)
    return {
        "perception": float(scores[:split].sum()),
        "cognition": float(scores[split:].sum()),
        **_mean_details(sums),
    }


MME = Metric("(acc + acc+) / 2", _own_counts, _mean, _mean_details)

# Of all 14 categories the mean of (acc + acc+) / 2 is (perception + cognition) / 2800 * 100, the normalised total. The
# two sums are points, of 2,000 and 800, and NaN where one of their categories was not asked.
MME_TOTAL = Metric("MME total / 28", _official_counts, _mean, _total_details)
