"""The bootstrap against intervals known in closed form."""

import math

import numpy as np
import pytest

from vlmprune.bench.stats import difference, estimate
from vlmprune.scoring.metrics import ACCURACY, F1


def counts(right: np.ndarray) -> np.ndarray:
    return np.stack([right.astype(float), np.ones(len(right))], axis=1)


def test_interval_of_a_proportion_is_the_binomial_one() -> None:
    right = np.arange(400) < 280
    value, low, high = estimate(ACCURACY, counts(right))
    half = 1.96 * math.sqrt(0.7 * 0.3 / 400) * 100
    assert value == pytest.approx(70)
    assert (low, high) == (pytest.approx(70 - half, abs=0.6), pytest.approx(70 + half, abs=0.6))


def test_pairs_as_units_widen_the_interval() -> None:
    right = np.arange(200) < 140
    single = estimate(ACCURACY, counts(np.repeat(right, 2)))
    paired = estimate(ACCURACY, 2 * counts(right))  # both answers of a pair right, or both wrong
    assert paired.value == single.value
    assert (paired.high - paired.low) / (single.high - single.low) == pytest.approx(math.sqrt(2), rel=0.08)


def test_paired_difference_has_the_interval_of_the_differences() -> None:
    rng = np.random.default_rng(1)
    base = rng.random(500) < 0.9
    pruned = base & (rng.random(500) < 0.95)  # pruning only breaks some of what was right
    value, low, high = difference(ACCURACY, counts(pruned), counts(base))
    change = 100.0 * (pruned.astype(float) - base)
    half = 1.96 * change.std() / math.sqrt(500)
    assert value == pytest.approx(change.mean())
    assert (low, high) == (pytest.approx(value - half, abs=0.4), pytest.approx(value + half, abs=0.4))
    unpaired = estimate(ACCURACY, counts(base))
    assert high - low < unpaired.high - unpaired.low


def test_certain_results_have_no_spread_and_runs_repeat() -> None:
    assert estimate(ACCURACY, counts(np.ones(20))) == (100, 100, 100)
    right = np.arange(50) % 3 > 0
    assert estimate(ACCURACY, counts(right)) == estimate(ACCURACY, counts(right))


def test_coverage() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        _, low, high = estimate(ACCURACY, counts(rng.random(150) < 0.6), draws=400)
        inside += low <= 60 <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_an_undefined_metric_is_nan_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    nothing_positive = np.array([[0, 0, 0, 1, 0, 1]] * 5, float)
    assert all(math.isnan(part) for part in estimate(F1, nothing_positive))
    assert not recwarn.list


def test_different_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="same units"):
        difference(ACCURACY, counts(np.ones(3)), counts(np.ones(4)))
