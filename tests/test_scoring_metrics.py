"""Metrics of groups of questions, on cases worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from vlmprune.core.errors import UserError
from vlmprune.scoring.metrics import (
    ACCURACY,
    CIRCULAR,
    HALLUSION,
    JUDGED_ACCURACY,
    METRICS,
    MME_TOTAL,
    OCRBENCH,
    Metric,
    unparsed_share,
)
from vlmprune.scoring.pairs import COGNITION, OFFICIAL, PERCEPTION


@dataclass
class Reply:
    score: float
    group: str = ""
    category: str = ""
    extracted: str | None = "x"
    answers: tuple[str, ...] = ("yes",)
    facts: dict[str, str] = field(default_factory=dict)


def figures(metric: Metric, records: Sequence[Reply]) -> tuple[float, dict[str, float]]:
    sums = metric.counts(records).sum(0)
    return float(metric.value(sums)), metric.details(sums)


def pair(category: str, first: float, second: float, group: str = "") -> list[Reply]:
    return [Reply(score, group or category, category) for score in (first, second)]


def test_mme_total_of_all_categories() -> None:
    records = [one for category in OFFICIAL for one in pair(category, 1, 1)]
    value, details = figures(MME_TOTAL, records)
    assert value == 100 and details["perception"] == 2000 and details["cognition"] == 800
    half = [one for category in OFFICIAL for one in pair(category, 1, 0)]  # acc 50, acc+ 0 everywhere
    value, details = figures(MME_TOTAL, half)
    assert value == pytest.approx((500 + 200) / 28) and details["perception"] == 500 and details["cognition"] == 200


def test_mme_total_weighs_categories_and_not_questions() -> None:
    many = [one for k in range(9) for one in pair("count", 1, 1, f"count-{k}")]
    rest = [one for category in OFFICIAL if category != "count" for one in pair(category, 0, 0)]
    assert figures(MME_TOTAL, many + rest)[0] == pytest.approx(200 / 28)


def test_mme_total_of_some_categories_says_no_sum() -> None:
    value, details = figures(MME_TOTAL, pair("count", 1, 1) + pair("color", 1, 0))
    assert value == pytest.approx((200 + 50) / 4)
    assert math.isnan(details["perception"]) and math.isnan(details["cognition"])
    assert len(PERCEPTION) == 10 and len(COGNITION) == 4


def test_mme_total_knows_its_categories() -> None:
    with pytest.raises(UserError, match="no category 'colour'"):
        figures(MME_TOTAL, pair("colour", 1, 1))


def test_circular_accuracy_asks_for_every_rotation() -> None:
    records = [Reply(1, "a"), Reply(1, "a"), Reply(1, "b"), Reply(0, "b"), Reply(1, "b"), Reply(1, "c")]
    value, details = figures(CIRCULAR, records)
    assert value == pytest.approx(200 / 3) and details == {"accuracy": pytest.approx(500 / 6)}
    assert len(CIRCULAR.counts(records)) == 3


def hallusion(score: float, group: str, question: str, figure: str) -> Reply:
    return Reply(score, group, facts={"question": question, "figure": figure})


def test_hallusionbench() -> None:
    records = [
        hallusion(1, "s", "0", "1"), hallusion(1, "s", "0", "2"),
        hallusion(1, "s", "1", "1"), hallusion(0, "s", "1", "2"),
        hallusion(0, "t", "0", "1"),
        hallusion(1, "t", "1", ""),  # without a picture: a question group, no figure
    ]  # fmt: skip
    value, details = figures(HALLUSION, records)
    # questions 4 of 6; groups s0 and t1 of s0 s1 t0 t1; figures s1 of s1 s2 t1
    assert details == {"aAcc": pytest.approx(400 / 6), "qAcc": 50, "fAcc": pytest.approx(100 / 3)}
    assert value == pytest.approx((400 / 6 + 50 + 100 / 3) / 3)
    assert len(HALLUSION.counts(records)) == 2


def test_ocrbench_is_of_the_questions_asked() -> None:
    assert figures(OCRBENCH, [Reply(1), Reply(0)])[0] == 50


def test_judged_accuracy_has_the_mean_rating_beside_it() -> None:
    records = [Reply(1, extracted="yes 4"), Reply(0, extracted="no 1"), Reply(0, extracted=None)]
    assert figures(JUDGED_ACCURACY, records) == (pytest.approx(100 / 3), {"rating": 2.5})
    assert figures(JUDGED_ACCURACY, [Reply(1, extracted="B")]) == (100, {})


@pytest.mark.parametrize("metric", [ACCURACY, OCRBENCH, CIRCULAR, JUDGED_ACCURACY], ids=lambda metric: metric.name)
def test_a_score_that_is_not_known_makes_the_figure_unknown(metric: Metric) -> None:
    records = [Reply(1, "a"), Reply(float("nan"), "a", extracted=None), Reply(1, "b")]
    assert math.isnan(figures(metric, records)[0])
    assert math.isnan(unparsed_share(records))


def test_metrics_take_a_stack_of_resampled_sums() -> None:
    records = [one for category in ("count", "color") for one in pair(category, 1, 0)]
    for one in records:
        one.facts = {"question": "0", "figure": "1"}
    for metric in METRICS.values():
        counts = metric.counts(records)
        stacked = metric.value(np.stack([counts.sum(0), counts[0]]))
        assert stacked.shape == (2,)
        assert stacked[0] == pytest.approx(float(metric.value(counts.sum(0))), nan_ok=True)
