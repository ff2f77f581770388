"""Intervals, tests and ranks against closed forms, exact values and the truth of simulations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from fake_results import make_record, make_run

from vlmprune.bench.questions import Questions
from vlmprune.bench.ranks import ABS, REL, drawn_means, standings
from vlmprune.bench.significance import MCNEMAR, PERMUTATION, compare, holm, mcnemar
from vlmprune.bench.stats import difference, estimate, mean_difference
from vlmprune.bench.store import VANILLA, Record
from vlmprune.bench.units import Units, units_of, without_problems
from vlmprune.scoring.metrics import ACCURACY, F1, MME, Metric
from vlmprune.tasks import generated_tasks
from vlmprune.tasks.task import Place

TASKS = generated_tasks()
CORNERS = [(p, n) for p in (0.5, 0.9, 0.98) for n in (24, 96)]
REPEATS, DRAWS = 100, 400


def units(right: Sequence[float] | np.ndarray, *more: Sequence[float]) -> Units:
    """Questions of accuracy with these scores, by seed."""
    counts = np.stack([np.stack([np.asarray(row, float), np.ones(len(row))], axis=1) for row in (right, *more)])
    return Units(ACCURACY, counts, np.array([1.0, 1.0]), np.array([0.0, 1.0]))


def records(task: str, right: np.ndarray) -> list[Record]:
    """Records of a generated task, the questions right that are said to be."""
    samples = list(Questions(TASKS[task], Place(), len(right)))
    run = make_run("llava", TASKS[task], samples, VANILLA, 1.0)
    made = [replace(make_record(run, sample), extracted=sample.answers[0], score=1.0) for sample in samples]
    other = {"yes": "no", "no": "yes"}
    return [
        record if good else replace(record, extracted=other.get(record.answers[0]), score=0.0)
        for record, good in zip(made, right, strict=True)
    ]


# ---------------------------------------------------------------- intervals


def test_interval_of_a_proportion_is_the_binomial_one() -> None:
    value, low, high = estimate(units(np.arange(400) < 280))
    half = 1.96 * math.sqrt(0.7 * 0.3 / 400) * 100
    assert value == pytest.approx(70)
    assert (low, high) == (pytest.approx(70 - half, abs=0.6), pytest.approx(70 + half, abs=0.6))


@pytest.mark.parametrize(("p", "n"), CORNERS)
def test_coverage_of_a_share_is_right_at_the_ends(p: float, n: int) -> None:
    """Exactly, by the binomial probabilities of every possible count."""
    covered = 0.0
    for right in range(n + 1):
        _, low, high = estimate(units(np.arange(n) < right))
        covered += math.comb(n, right) * p**right * (1 - p) ** (n - right) * (low <= 100 * p <= high)
    assert covered >= 0.93


@pytest.mark.parametrize(("p", "n"), CORNERS)
@pytest.mark.parametrize("shape", ["F1", "MME", "graded", "difference"])
def test_coverage_elsewhere_is_right_at_the_ends(shape: str, p: float, n: int) -> None:
    rng = np.random.default_rng(n)
    covered = sum(_covers(shape, p, n, rng) for _ in range(REPEATS))
    assert covered / REPEATS >= 0.93


def _covers(shape: str, p: float, n: int, rng: np.random.Generator) -> bool:
    """Whether the interval of one simulated run holds the true value."""
    right = rng.random(n) < p
    if shape == "graded":  # half of the points for half of the right answers
        low, high = estimate(units(right * np.where(rng.random(n) < 0.5, 1.0, 0.5)), draws=DRAWS)[1:]
        return bool(low <= 75 * p <= high)
    if shape == "difference":  # vanilla is right in 95 %, whatever the method is
        base = rng.random(n) < 0.95
        low, high = difference(units(right), units(base), draws=DRAWS)[1:]
        return bool(low <= 100 * p - 95 <= high)
    if shape == "F1":  # half of the right answers are yes
        yes = rng.random(n) < 0.5
        rows = np.stack([right & yes, ~right & ~yes, ~right & yes, right, right == yes, np.ones(n)], axis=1)
        found = Units(
            F1, rows[None].astype(float), np.array([0.5, 0, 0, 1, 0.5, 1]), np.array([0, 0.5, 0.5, 0, 0.5, 1])
        )
        truth = 100 * p  # 2 p / (2 p + 2 (1 - p))
    else:  # MME, two categories
        second = rng.random(n) < p
        rows = np.zeros((n, 2, 4))
        kinds = np.arange(n) % 2
        rows[np.arange(n), kinds] = np.stack([right * 1.0 + second, np.full(n, 2), right & second, np.ones(n)], axis=1)
        best = np.tile([1.0, 1, 0.5, 0.5], 2)
        found = Units(MME, rows.reshape(1, n, 8), best, best * np.tile([0.0, 1, 0, 1], 2))
        truth = 100 * (p + p * p) / 2
    low, high = estimate(found, draws=DRAWS)[1:]
    return bool(low <= truth <= high)


@pytest.mark.parametrize("task", ["synth-ocr", "synth-pope", "synth-mme"])
def test_no_interval_collapses(task: str) -> None:
    """24 of 24 right is not certainty, and 24 answers like vanilla's are not the proof that none will differ."""
    metric = TASKS[task].metric
    everything = units_of(metric, [records(task, np.ones(24, bool))])
    assert everything.metric.value(everything.best) == 100 and everything.metric.value(everything.worst) == 0
    value, low, high = estimate(everything)
    assert (value, high) == (100, 100) and 70 < low < 90
    same = difference(everything, everything)
    assert same.value == 0 and same.low < -8 and same.high > 8
    nothing = estimate(units_of(metric, [records(task, np.zeros(24, bool))]))
    assert nothing.value == nothing.low == 0 and 10 < nothing.high < 30


def test_a_graded_share_has_clopper_and_pearson_as_its_limit() -> None:
    """Gaffke's interval of 0 and 1 is the exact one: 24 of 24 reaches down to 0.025 ** (1 / 24)."""
    twice = units(np.ones(24), np.ones(24))  # two seeds, so that it is not a share
    assert not twice.is_share
    assert estimate(twice).low == pytest.approx(100 * 0.025 ** (1 / 24), abs=1.0)


def test_paired_difference_has_the_interval_of_the_differences() -> None:
    rng = np.random.default_rng(1)
    base = rng.random(500) < 0.9
    pruned = base & (rng.random(500) < 0.95)  # pruning only breaks some of what was right
    value, low, high = difference(units(pruned), units(base))
    change = 100.0 * (pruned.astype(float) - base)
    half = 1.96 * change.std() / math.sqrt(500)
    assert value == pytest.approx(change.mean())
    assert (low, high) == (pytest.approx(value - half, abs=0.8), pytest.approx(value + half, abs=0.8))
    assert high - low < estimate(units(base)).high - estimate(units(base)).low


def test_seeds_count_by_their_mean() -> None:
    both = units([1, 1, 0, 0], [1, 0, 0, 0])
    assert both.values == (50, 25) and estimate(both).value == 37.5
    assert difference(both, units([1, 1, 1, 1])).value == -62.5


def test_draws_repeat() -> None:
    half = units(np.arange(50) % 3 / 2)
    assert estimate(half) == estimate(half) and not half.is_share


def test_an_undefined_metric_is_nan_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    nothing_positive = np.array([[[0, 0, 0, 1, 0, 1]] * 5], float)
    found = Units(F1, nothing_positive, nothing_positive[0, 0], nothing_positive[0, 0])
    assert all(math.isnan(part) for part in estimate(found))
    assert compare(found, found) is None
    assert not recwarn.list


def test_different_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="same units"):
        difference(units(np.ones(3)), units(np.ones(4)))


# ---------------------------------------------------------------- tests


@pytest.mark.parametrize(("broken", "repaired", "p"), [(0, 0, 1.0), (5, 0, 0.0625), (1, 9, 22 / 1024), (3, 3, 1.0)])
def test_mcnemar_is_the_exact_binomial_test(broken: int, repaired: int, p: float) -> None:
    assert mcnemar(broken, repaired) == pytest.approx(p)
    assert mcnemar(repaired, broken) == pytest.approx(p)


def test_mcnemar_of_many_is_the_normal_one() -> None:
    z = (2 * 50_400 - 100_000 - 1) / math.sqrt(100_000)  # with the correction for continuity
    assert mcnemar(50_400, 49_600) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


def test_a_share_has_mcnemar_and_everything_else_a_permutation() -> None:
    base, pruned = np.ones(24, bool), np.arange(24) >= 6
    found = {task: _compared(TASKS[task].metric, task, base, pruned) for task in ("synth-ocr", "synth-pope")}
    assert found["synth-ocr"] == (pytest.approx(2 / 64), MCNEMAR)
    assert found["synth-pope"].name == PERMUTATION


def _compared(metric: Metric, task: str, base: np.ndarray, pruned: np.ndarray) -> object:
    return compare(units_of(metric, [records(task, pruned)]), units_of(metric, [records(task, base)]))


def test_the_permutation_of_right_and_wrong_is_mcnemars() -> None:
    base, pruned = np.ones(30), (np.arange(30) >= 7).astype(float)
    pruned[0] = 1
    twice = compare(units(pruned, pruned), units(base))
    assert twice is not None and twice.name == PERMUTATION
    assert twice.p == pytest.approx(mcnemar(6, 0), abs=0.006)


def test_the_permutation_rejects_a_true_hypothesis_as_often_as_it_says() -> None:
    rng, rejected = np.random.default_rng(3), 0
    for _ in range(200):
        found = compare(units(rng.random(40)), units(rng.random(40)))
        rejected += found is not None and found.p < 0.05
    assert 2 <= rejected <= 19


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_the_mean_difference_of_one_task_is_its_difference_and_more_tasks_narrow_it() -> None:
    own, base = units(np.arange(60) < 50), units(np.arange(60) < 40)
    one, of_one = difference(own, base), mean_difference([own], [base])
    assert of_one.value == one.value and (of_one.low, of_one.high) == pytest.approx((one.low, one.high), abs=1.5)
    four = mean_difference([own] * 4, [base] * 4)
    assert four.value == pytest.approx(one.value) and four.high - four.low < 0.7 * (one.high - one.low)
    mixed = mean_difference([own, base], [base, own])
    assert mixed.value == 0 and mixed.low < 0 < mixed.high


# ---------------------------------------------------------------- ranks


def test_ranks_tell_what_is_better_and_leave_open_what_is_not() -> None:
    rng = np.random.default_rng(0)
    vanilla = units(np.ones(200))
    good, bad = units(np.arange(200) < 180), units(np.arange(200) < 90)
    like = units(rng.permutation(200) < 180)
    first, second, last = standings([[good], [like], [bad]], [vanilla])
    assert last.best == 0 and last.rank == 3 and (last.low, last.high) == (3, 3)
    assert first.best + second.best == pytest.approx(100) and 25 < first.best < 75
    assert (first.low, first.high) == (1, 2)


def test_the_same_weights_hold_for_every_method() -> None:
    same = units(np.arange(60) % 3 > 0)
    draws = drawn_means([[same], [same]], [units(np.ones(60))])
    assert draws.shape == (2000, 2) and (draws[:, 0] == draws[:, 1]).all() and draws[:, 0].std() > 1


def test_equal_methods_share_the_draw_and_the_rank() -> None:
    same = units(np.arange(50) < 30)
    found = standings([[same], [same]], [units(np.ones(50))])
    assert [(place.best, place.rank) for place in found] == [(50, 1.5), (50, 1.5)]


def test_rel_mean_and_abs_mean_rank_differently_where_vanilla_is_weak() -> None:
    strong, weak = units(np.ones(400)), units(np.arange(400) % 4 == 0)
    keeps_strong = [units(np.arange(400) < 380), units(np.arange(400) % 16 == 0)]
    keeps_weak = [units(np.arange(400) < 250), units(np.arange(400) % 4 == 0)]
    methods, vanilla = [keeps_strong, keeps_weak], [strong, weak]
    assert standings(methods, vanilla, REL)[1].best > 99
    assert standings(methods, vanilla, ABS)[0].best > 99


# ---------------------------------------------------------------- what could not be asked


def test_a_question_that_one_run_could_not_ask_counts_in_none() -> None:
    found = records("synth-ocr", np.ones(6, bool))
    broken = [found[0], replace(found[1], problem="its image is broken"), *found[2:]]
    runs: Callable[[Metric], list[tuple[Metric, list[Record]]]] = lambda metric: [(metric, found), (metric, broken)]  # noqa: E731
    left, out = without_problems(runs(ACCURACY))
    assert out == {found[1].id: "its image is broken"} and [len(of) for of in left] == [5, 5]
    pairs = records("synth-mme", np.ones(6, bool))
    half = [pairs[0], replace(pairs[1], problem="its image is broken"), *pairs[2:]]
    left, out = without_problems([(MME, pairs), (MME, half)])
    assert out == {pairs[0].id: "", pairs[1].id: "its image is broken"}, "half of a pair is no unit"
    with pytest.raises(ValueError, match="other samples"):
        without_problems([(ACCURACY, found), (ACCURACY, found[1:])])
