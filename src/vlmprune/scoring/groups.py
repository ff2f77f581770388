"""Metrics in which several questions count together: circular multiple choice, HallusionBench's accuracies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlmprune.scoring.metric import Metric, Scored, by_group, ratio


def _circular_counts(records: Sequence[Scored]) -> np.ndarray:
    """One row per group, the rotations of one question. Columns: all right, groups, right answers, questions."""
    rows = []
    for members in by_group(records):
        scores = [member.score for member in members]
        rows.append((float(np.min(scores)), 1, sum(scores), len(scores)))
    return np.array(rows, float).reshape(-1, 4)


def _circular_details(sums: np.ndarray) -> dict[str, float]:
    return {"accuracy": float(ratio(sums[2], sums[3]))}


# MMBench's rule (Liu et al., arXiv 2307.06281): a question counts where it is right under every order of its options.
# `accuracy` beside it is the share of single questions.
CIRCULAR = Metric(
    "circular accuracy", _circular_counts, lambda sums: ratio(sums[..., 0], sums[..., 1]), _circular_details
)


def _hallusion_counts(records: Sequence[Scored]) -> np.ndarray:
    """One row per set of questions and figures. Columns: right answers, questions, question groups with all right,
    question groups, figures with all right, figures."""
    return np.array([_set_counts(members) for members in by_group(records)], float).reshape(-1, 6)


def _set_counts(members: Sequence[Scored]) -> tuple[float, ...]:
    scores = [member.score for member in members]
    return sum(scores), len(scores), *_whole(members, "question"), *_whole(members, "figure")


def _whole(members: Sequence[Scored], fact: str) -> tuple[float, int]:
    """How many values of a fact have all their questions right, and how many there are; "" is none."""
    scores: dict[str, list[float]] = {}
    for member in members:
        if value := member.facts[fact]:
            scores.setdefault(value, []).append(member.score)
    return sum(float(np.min(of)) for of in scores.values()), len(scores)


def _hallusion_parts(sums: np.ndarray) -> np.ndarray:
    return ratio(sums[..., 0::2], sums[..., 1::2])


def _hallusion_details(sums: np.ndarray) -> dict[str, float]:
    accuracy, question, figure = _hallusion_parts(sums)
    return {"aAcc": float(accuracy), "qAcc": float(question), "fAcc": float(figure)}


# HallusionBench (Guan et al., arXiv 2310.14566) by VLMEvalKit's headline: the mean of the accuracies by question, by
# question group (one question asked of all figures of its set) and by figure. A task gives as `group` the set
# (category, subcategory, set), within which the two overlap, and as facts `question` and `figure` their numbers in it.
# A figure "" is none: the question was asked without one.
HALLUSION = Metric(
    "(aAcc + qAcc + fAcc) / 3", _hallusion_counts, lambda sums: _hallusion_parts(sums).mean(-1), _hallusion_details
)
