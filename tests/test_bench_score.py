"""Scorers and metrics against cases worked out by hand."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from vlmprune.scoring.metrics import ACCURACY, F1, MME, accuracy_by_category, unparsed_share
from vlmprune.scoring.replies import score_reply
from vlmprune.tasks.generated import split_options

OPTIONS = ("red", "dark blue", "green", "yellow")


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("yes", "yes"),
        ("Yes.", "yes"),
        ("No, there is not.", "no"),
        ("yes yes", "yes"),
        ("yes or no", None),
        ("nothing", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_yes_no(reply: str, found: str | None) -> None:
    assert score_reply("yesno", reply, ("yes",)) == (found, float(found == "yes"))


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("(b)", "(b)"),
        ("B", "(b)"),
        ("b. dark blue", "(b)"),
        ("The answer is (c).", "(c)"),
        ("A. red", "(a)"),
        ("a", "(a)"),
        ("the answer is a", "(a)"),
        ("a green object", "(c)"),  # "a" is an article here
        ("Dark Blue", "(b)"),
        ("red and green", None),
        ("(a) (b)", None),
        ("(e)", None),
        ("purple", None),
        ("", None),
    ],
)
def test_choice(reply: str, found: str | None) -> None:
    assert score_reply("choice", reply, ("(b)",), OPTIONS) == (found, float(found == "(b)"))


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("three", "three"),
        ("3", "three"),
        ("There are 3 objects.", "three"),
        ("2 or 3", None),
        ("12", "1 2"),
        ("", None),
    ],
)
def test_number(reply: str, found: str | None) -> None:
    assert score_reply("number", reply, ("three",)) == (found, float(found == "three"))


def test_words_are_compared_whole_with_digits_apart() -> None:
    assert score_reply("words", "407.", ("4 0 7",)) == ("4 0 7", 1.0)
    assert score_reply("words", "4 0 7 1", ("4 0 7",)).score == 0.0
    assert score_reply("words", "Top left", ("top left",)).score == 1.0
    assert score_reply("words", "color = red", ("color = red",)).score == 1.0
    assert score_reply("words", "  ", ("red",)) == (None, 0.0)


def test_options_are_read_from_the_question() -> None:
    assert split_options("what color is it ? (a) red (b) dark blue (c) green (d) yellow") == OPTIONS


@dataclass
class Reply:
    extracted: str | None
    answers: tuple[str, ...]
    group: str = ""
    category: str = "c"
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def score(self) -> float:
        return float(self.extracted == self.answers[0])


def replies(*pairs: tuple[str | None, str]) -> list[Reply]:
    return [Reply(said, (truth,), group=str(k)) for k, (said, truth) in enumerate(pairs)]


def test_pope() -> None:
    # 2 true positives, 1 false positive, 2 false negatives (one unparsed), 1 true negative, 1 unparsed negative
    records = replies(
        ("yes", "yes"), ("yes", "yes"), ("yes", "no"), ("no", "yes"), (None, "yes"), ("no", "no"), (None, "no")
    )
    sums = F1.counts(records).sum(0)
    assert float(F1.value(sums)) == pytest.approx(100 * 4 / 7)
    details = F1.details(sums)
    assert details["precision"] == pytest.approx(100 * 2 / 3)
    assert details["recall"] == pytest.approx(50)
    assert details["accuracy"] == pytest.approx(100 * 3 / 7)
    assert details["yes_ratio"] == pytest.approx(100 * 3 / 7)
    assert unparsed_share(records) == pytest.approx(100 * 2 / 7)


def test_pope_always_yes() -> None:
    sums = F1.counts(replies(("yes", "yes"), ("yes", "no"))).sum(0)
    assert float(F1.value(sums)) == pytest.approx(200 / 3)
    assert F1.details(sums)["yes_ratio"] == 100


def test_mme_is_the_mean_of_accuracy_and_pair_accuracy_over_categories() -> None:
    def pair(group: str, category: str, first: str, second: str) -> list[Reply]:
        return [Reply(first, ("yes",), group, category), Reply(second, ("no",), group, category)]

    records = pair("1", "color", "yes", "no") + pair("2", "color", "yes", "yes") + pair("3", "place", "no", "yes")
    counts = MME.counts(records)
    assert counts.shape == (3, 8)
    # color: acc 75, acc+ 50; place: 0 and 0
    assert float(MME.value(counts.sum(0))) == pytest.approx((62.5 + 0) / 2)
    assert MME.details(counts.sum(0)) == {"accuracy": pytest.approx(37.5), "accuracy_plus": pytest.approx(25)}


def test_mme_of_an_always_yes_model_is_25() -> None:
    records = [Reply("yes", (truth,), str(k), "c") for k in range(4) for truth in ("yes", "no")]
    assert float(MME.value(MME.counts(records).sum(0))) == 25


def test_metrics_take_a_stack_of_resampled_sums() -> None:
    records = replies(("yes", "yes"), ("no", "yes"), ("no", "no"))
    for metric in (ACCURACY, F1, MME):
        counts = metric.counts(records)
        stacked = metric.value(np.stack([counts.sum(0), counts[0]]))
        assert stacked.shape == (2,)
        assert stacked[0] == pytest.approx(float(metric.value(counts.sum(0))))


def test_accuracy_by_category() -> None:
    records = [Reply("a", ("a",), "1", "x"), Reply("b", ("a",), "2", "x"), Reply("a", ("a",), "3", "y")]
    assert accuracy_by_category(records) == {"x": 50, "y": 100}
