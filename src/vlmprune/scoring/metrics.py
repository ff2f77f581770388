"""The metrics of the tasks, by name. All of them are in percent.

- `ACCURACY`, `SOFT_ACCURACY`, `ANLS`, `RELAXED_ACCURACY`, `BOX_ACCURACY`, `OCRBENCH`: the mean of the scores, under the
  name that it has for that kind of score. A unit is a question. OCRBench's points of 1,000 are ten times its value.
- `F1`: of "yes" (POPE), with precision, recall, accuracy and the share of "yes" beside it. A unit is a question.
- `MME_TOTAL`, `MME`: see `scoring.pairs`. A unit is a pair; its details `perception` and `cognition` are points.
- `CIRCULAR`, `HALLUSION`: see `scoring.groups`. A unit is a group of questions.
- `JUDGED_SCORE`, `JUDGED_ACCURACY`: the mean of a judge's scores. The latter has beside it the judge's mean `rating`,
  from 0 to 5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from vlmprune.scoring.groups import CIRCULAR, HALLUSION
from vlmprune.scoring.metric import Metric, Scored, accuracy_by_category, no_details, ratio, unparsed_share
from vlmprune.scoring.pairs import MME, MME_TOTAL


def _score_counts(records: Sequence[Scored]) -> np.ndarray:
    """Columns: score, questions."""
    return np.array([(record.score, 1.0) for record in records], float).reshape(-1, 2)


def _first_share(sums: np.ndarray) -> np.ndarray:
    return ratio(sums[..., 0], sums[..., 1])


def _mean_score(name: str) -> Metric:
    return Metric(name, _score_counts, _first_share, no_details)


ACCURACY = _mean_score("accuracy")
SOFT_ACCURACY = _mean_score("soft accuracy")
ANLS = _mean_score("ANLS")
RELAXED_ACCURACY = _mean_score("relaxed accuracy")
BOX_ACCURACY = _mean_score("accuracy at IoU 0.5")
OCRBENCH = _mean_score("OCRBench score / 10")
JUDGED_SCORE = _mean_score("judged score")


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
    return ratio(2 * sums[..., 0], 2 * sums[..., 0] + sums[..., 1] + sums[..., 2])


def _pope_details(sums: np.ndarray) -> dict[str, float]:
    true, false, missed, right, yes, n = sums
    return {
        "accuracy": float(ratio(right, n)),
        "precision": float(ratio(true, true + false)),
        "recall": float(ratio(true, true + missed)),
        "yes_ratio": float(ratio(yes, n)),
    }


F1 = Metric("F1", _pope_counts, _f1, _pope_details)


_RATING = re.compile(r"(?:yes|no) (\d(?:\.\d+)?)")


def _rated_counts(records: Sequence[Scored]) -> np.ndarray:
    """Columns: score, questions, rating, ratings."""
    rows = []
    for record in records:
        rating = _RATING.fullmatch(record.extracted or "")  # else it is the answer itself, or none
        rows.append((record.score, 1.0, float(rating[1]) if rating else 0.0, float(rating is not None)))
    return np.array(rows, float).reshape(-1, 4)


def _rating(sums: np.ndarray) -> dict[str, float]:
    return {"rating": float(sums[2] / sums[3])} if sums[3] > 0 else {}


JUDGED_ACCURACY = Metric("judged accuracy", _rated_counts, _first_share, _rating)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        ACCURACY,
        SOFT_ACCURACY,
        ANLS,
        RELAXED_ACCURACY,
        BOX_ACCURACY,
        OCRBENCH,
        F1,
        MME,
        MME_TOTAL,
        CIRCULAR,
        HALLUSION,
        JUDGED_SCORE,
        JUDGED_ACCURACY,
    )
}

__all__ = [
    "ACCURACY",
    "ANLS",
    "BOX_ACCURACY",
    "CIRCULAR",
    "F1",
    "HALLUSION",
    "JUDGED_ACCURACY",
    "JUDGED_SCORE",
    "METRICS",
    "MME",
    "MME_TOTAL",
    "OCRBENCH",
    "RELAXED_ACCURACY",
    "SOFT_ACCURACY",
    "Metric",
    "Scored",
    "accuracy_by_category",
    "unparsed_share",
]
