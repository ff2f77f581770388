"""Every rule that finds an answer in a reply, on cases worked out by hand."""

from __future__ import annotations

import math

import pytest

from vlmprune.core.errors import UserError
from vlmprune.scoring.documents import levenshtein
from vlmprune.scoring.latex import value_of
from vlmprune.scoring.replies import SCORERS, score_reply
from vlmprune.scoring.vqa import normalise

OPTIONS = ("a red car", "a blue car", "two bicycles", "nothing")


@pytest.mark.parametrize(
    ("reply", "answer", "found", "score"),
    [
        ("3", "three", "three", 1.0),
        ("There are 3.", "3", "three", 1.0),
        ("It costs 1,200 dollars", "1200", "1 2 0 0", 1.0),
        ("-0.5", "-.5", "-0.5", 1.0),
        ("3.50", "3.5", "3.5", 1.0),
        ("3 or three", "3", "three", 1.0),
        ("3 or 4", "3", None, 0.0),
        ("many", "3", None, 0.0),
    ],
)
def test_number(reply: str, answer: str, found: str | None, score: float) -> None:
    assert score_reply("number", reply, (answer,)) == (found, score)


@pytest.mark.parametrize(
    ("reply", "found", "score"),
    [
        ("1 0 2 0 3 0 6 0", "10 20 30 60", 1.0),  # two digits an edge
        ("10 20 30 60", "10 20 30 60", 1.0),
        ("[10%, 20%, 30%, 60%].", "10 20 30 60", 1.0),
        ('{"bbox_2d": [10.5, 20, 30, 60]}', "10.5 20 30 60", 1.0),
        ("0.1, 0.2, 0.3, 0.6", "10 20 30 60", 1.0),
        ("Left 10, top 20, right 30, bottom 40", "10 20 30 40", 1.0),  # half of it
        ("10 20 30 39", "10 20 30 39", 0.0),
        ("10 20 50 60", "10 20 50 60", 1.0),  # twice as much
        ("10 20 51 60", "10 20 51 60", 0.0),
        ("30 60 10 20", "30 60 10 20", 0.0),  # the wrong way round
        ("0 0 1 1", "0 0 1 1", 0.0),  # percent: shares of 1 have a fraction
        ("100 200 300 600", None, 0.0),  # pixels or thousandths, and nobody asked for these
        ("10 20 30", None, 0.0),
        ("1 0 2 0 3 0 6 0 1 0", None, 0.0),
        ("-10 20 30 60", None, 0.0),
        ("there is none", None, 0.0),
    ],
)
def test_box(reply: str, found: str | None, score: float) -> None:
    assert score_reply("box", reply, ("1 0 2 0 3 0 6 0",)) == (found, score)
    assert score_reply("box", reply, ("70 70 80 80", "10 20 30 60")) == (found, score)


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("Teddy-Bear.", "teddybear"),
        (" teddy bear ", "teddy bear"),
        ("...", None),
    ],
)
def test_exact_folds_case_and_punctuation(reply: str, found: str | None) -> None:
    assert score_reply("exact", reply, ("teddy bear", "Teddybear")) == (found, float(found is not None))
    assert score_reply("exact", "a teddy bear", ("teddy bear",)).score == 0.0


def test_contained_text_folds_case_and_lines() -> None:
    assert score_reply("contains", "The sign says\nCENTRE Street.", ("says centre", "x")).score == 1.0
    assert score_reply("contains", "center", ("CENTRE",)) == ("center", 0.0)
    assert score_reply("contains", " \n", ("CENTRE",)) == (None, 0.0)
    assert score_reply("contains", "anything", ("",)).score == 0.0  # an empty answer is in every reply


def test_contained_formula_keeps_case_and_drops_spaces() -> None:
    assert score_reply("contains-formula", "It is \\frac { A } { b }", ("\\frac{A}{b}",)).score == 1.0
    assert score_reply("contains-formula", "\\frac{a}{b}", ("\\frac{A}{b}",)).score == 0.0


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("B", "B"),
        ("B. a blue car", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("The answer is B", "B"),
        ("The answer is (B).", "B"),
        ("The right answer is B as one sees", "B"),  # the letter is among the last four words
        ("B is what I see in there", None),  # and here it is not
        ("b", None),  # case counts for letters
        ("A or B", None),
        ("E", None),  # there are four options
        ("A man drives a Blue Car", "B"),  # the letter A is too far from the end, and the text counts
        ("a blue car", "B"),
        ("a red car and a blue car", None),
        ("I can't process this file. B", None),
        ("it shows a blue car " + "beside many other things that are of no interest here at all", None),  # too long
        ("", None),
    ],
)
def test_option_by_the_rules_of_vlmevalkit(reply: str, found: str | None) -> None:
    assert score_reply("option", reply, ("B",), OPTIONS) == (found, float(found == "B"))


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("B", "B"),
        (" (b) a blue car", "B"),
        ("B.", "B"),
        ("Because of the colour", None),
        ("The answer is B", None),
        ("E", None),
        ("", None),
    ],
)
def test_option_by_the_first_character(reply: str, found: str | None) -> None:
    assert score_reply("option-first", reply, ("B",), OPTIONS) == (found, float(found == "B"))


def test_options_that_stand_in_the_question_alone() -> None:
    for kind in ("option", "option-first"):
        assert score_reply(kind, "C.", ("C",)) == ("C", 1.0)
        assert score_reply(kind, "I", ("C",)) == (None, 0.0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The Cat", "cat"),
        ("two", "2"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("1,000", "1000"),  # a comma in a number: signs go without a trace
        ("red/blue", "red blue"),  # a sign between letters becomes a space
        ("red / blue", "red blue"),
        ("yes.", "yes"),
        ("3.5", "3.5"),
        ("st. john", "st john"),
        ("a\nb\tc", "b c"),
    ],
)
def test_vqa_normaliser(text: str, found: str) -> None:
    assert normalise(text) == found


@pytest.mark.parametrize(
    ("same", "others", "score"),
    [
        (0, 10, 0.0),
        (1, 9, 9 * (1 / 3) / 10),  # the one who said it has no other on his side
        (2, 8, (8 * (2 / 3) + 2 * (1 / 3)) / 10),
        (3, 7, (7 * 1.0 + 3 * (2 / 3)) / 10),
        (4, 6, 1.0),
        (10, 0, 1.0),
        (1, 0, 1.0),
        (2, 0, 1.0),
        (1, 1, 0.5),
    ],
)
def test_vqa_is_the_mean_over_those_left_out(same: int, others: int, score: float) -> None:
    found = score_reply("vqa", "The cat.", ("cat",) * same + ("dog",) * others)
    assert found.extracted == "cat" and found.score == pytest.approx(score)


def test_vqa_of_nothing() -> None:
    assert score_reply("vqa", "the", ("cat",) * 10) == (None, 0.0)


def test_levenshtein() -> None:
    assert [levenshtein(*pair) for pair in (("kitten", "sitting"), ("", "abc"), ("abc", "abc"), ("ab", "ba"))] == [
        3, 3, 0, 2,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "answers", "score"),
    [
        ("Hello World", ("hello  world",), 1.0),
        ("hello", ("hallo",), 0.8),
        ("hello", ("xyz", "hallo"), 0.8),
        ("ab", ("ac",), 0.5),  # 0.5 still counts
        ("abc", ("axy",), 0.0),  # a third does not
        ("x", ("",), 0.0),
    ],
)
def test_anls(reply: str, answers: tuple[str, ...], score: float) -> None:
    assert score_reply("anls", reply, answers).score == pytest.approx(score)
    assert score_reply("anls", "  ", answers) == (None, 0.0)


@pytest.mark.parametrize(
    ("reply", "answer", "score"),
    [
        ("105", "100", 1.0),
        ("105.1", "100", 0.0),
        ("95", "100", 1.0),
        ("-100", "100", 0.0),
        ("-104", "-100", 1.0),
        ("12%", "12%", 1.0),
        ("12%", "0.12", 1.0),
        ("12", "0.12", 0.0),
        ("0", "0", 1.0),
        ("0.0", "0", 0.0),  # nothing is within 5 % of 0, so the text counts
        (" Yes ", "yes", 1.0),
        ("Yes.", "yes", 0.0),
        ("1_0", "10", 0.0),
        ("nan", "nan", 1.0),
        ("inf", "10", 0.0),
        ("1,000", "1000", 0.0),
    ],
)
def test_relaxed_accuracy(reply: str, answer: str, score: float) -> None:
    assert score_reply("relaxed", reply, (answer,)).score == score
    assert score_reply("relaxed", reply, ("nothing like it", answer)).score == score
    assert score_reply("relaxed", " ", (answer,)) == (None, 0.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("80", 80),
        ("-3.5", -3.5),
        (".5", 0.5),
        ("1,200", 1200),
        ("12,00", None),
        ("3/4", 0.75),
        ("3:4", 0.75),
        ("\\frac{3}{4}", 0.75),
        ("\\dfrac{3}{4}", 0.75),
        ("\\frac34", 0.75),
        ("2\\sqrt{9}", 6),
        ("\\sqrt[3]{27}", 3),
        ("2\\pi+1", 2 * math.pi + 1),
        ("3(2+1)", 9),
        ("-2^2", -4),
        ("2^{-1}", 0.5),
        ("2 \\times 3 \\cdot 4", 24),
        ("6 \\div -3", -2),
        ("\\left( 1 + 2 \\right)", 3),
        ("1/0", None),
        ("9^9^9^9", None),
        ("\\sqrt{-1}", None),
        ("(-8)^{0.5}", None),
        ("x+1", None),
        ("1+", None),
        ("(1", None),
        ("", None),
        ("__import__('os')", None),
        ("1" * 300, None),
    ],
)
def test_value_of_a_formula(text: str, value: float | None) -> None:
    assert value_of(text) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("reply", "found", "right"),
    [
        ("60", "60", True),
        ("60.0", "60.0", True),
        ("The answer is 60.", "60", True),
        ("It follows that x = 60", "60", True),
        ("So \\boxed{60}.", "60", True),
        ("First \\boxed{12}, then \\boxed{60}", "60", True),
        ("\\boxed{\\frac{120}{2}}", "\\frac{120}{2}", True),
        ("The correct answer is 60. Because of that", "60", True),
        ("the final answer is 60\nor not", "60", True),
        ("60 km", "60", True),
        ("$60^\\circ$", "60", True),
        (":60", "60", True),
        ("60.004", "60.004", True),  # two decimals
        ("60.01", "60.01", False),
        ("61", "61", False),
        ("I cannot tell", None, False),
        ("", None, False),
    ],
)
def test_mathvision_free_answers(reply: str, found: str | None, right: bool) -> None:
    assert score_reply("mathvision", reply, ("60",)) == (found, float(right))


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("C", True),
        ("c", True),
        ("(C)", True),
        ("C\nbecause", True),
        ("(C) C\nbecause", True),
        ("It must be C.", True),
        ("It must be (C).", True),
        ("the answer is (C)", True),
        ("\\boxed{C}", True),
        ("\\boxed{(C)}", True),
        ("3/2", True),  # the option's text
        ("1.5", True),  # or its value
        ("B", False),
        ("2", False),
    ],
)
def test_mathvision_options(reply: str, right: bool) -> None:
    assert score_reply("mathvision", reply, ("C",), ("1", "2", "3/2", "4", "5")).score == float(right)


def test_mathvision_tuples() -> None:
    assert score_reply("mathvision", "(1, 4/2)", ("(1,2)",)).score == 1.0
    assert score_reply("mathvision", "[1,2]", ("(1,2)",)).score == 0.0
    assert score_reply("mathvision", "(1,2,3)", ("(1,2)",)).score == 0.0


@pytest.mark.parametrize(
    ("reply", "answer", "facts", "found", "right"),
    [
        ("14", "14", {"answer_type": "integer"}, "14", True),
        ("14.0", "14", {"answer_type": "integer"}, "14", True),
        ("The number is 14", "14", {"answer_type": "integer"}, None, False),
        ('The answer is "14".', "14", {"answer_type": "integer"}, "14", True),
        ("1.24", "1.2", {"answer_type": "float", "precision": "1"}, "1.2", True),
        ("1.26", "1.2", {"answer_type": "float", "precision": "1"}, "1.3", False),
        ("1.204", "1.20", {}, "1.2", True),  # the answer shows its type and decimals
        ("[2007, 2008]", "[2007,2008]", {"answer_type": "list"}, "[2007, 2008]", True),
        ("2007, 2008", "[2007, 2008]", {"answer_type": "list"}, None, False),
        ("Paris", "Paris", {}, "Paris", True),
        ("  ", "Paris", {}, None, False),
    ],
)
def test_mathvista_bare_answers(reply: str, answer: str, facts: dict[str, str], found: str | None, right: bool) -> None:
    assert score_reply("mathvista", reply, (answer,), (), facts) == (found, float(right))


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("B.", "B"),
        ("(B) 8/11", "B"),
        ("8/11", "B"),
        ("The correct answer is (B) 8/11.", None),
        ("D", None),
        ("7/11", None),
    ],
)
def test_mathvista_options(reply: str, found: str | None) -> None:
    for answer in ("B", "8/11"):  # a data set names the right option by letter or by text
        assert score_reply("mathvista", reply, (answer,), ("3/11", "8/11", "6/11")) == (found, float(found == "B"))


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(UserError, match="no kind of answer 'essay': choose from anls, "):
        score_reply("essay", "x", ("x",))


@pytest.mark.parametrize("kind", sorted(SCORERS))
@pytest.mark.parametrize("reply", ["", " ", "\n", "\x00", "}{", "\\frac", "((((", "[", "é日本", "x" * 20_000])
def test_no_reply_breaks_a_scorer(kind: str, reply: str) -> None:
    score = score_reply(kind, reply, ("yes",), ("yes", "no"), {"answer_type": "text"}).score
    assert math.isnan(score) or 0.0 <= score <= 1.0
