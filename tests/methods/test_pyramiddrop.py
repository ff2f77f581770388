"""PyramidDrop."""

from __future__ import annotations

from typing import Any

import pytest
from harness import RAGGED, TOLERANCE, inputs_of, largest, oracle, policies
from harness_staged import (
    QWEN2,
    SIX,
    counts_of,
    layers_of,
    run_on,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import vlmprune
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.view import ModelInfo
from vlmprune.methods.decoder.pyramiddrop import PyramidDrop
from vlmprune.methods.vision.divprune import DivPrune
from vlmprune.testing import FAMILIES


def entering(kept: list[int], places: list[Any], total: int, depth: int) -> float:
    """Mean number of tokens that enter a layer."""
    bounds, sizes = [0, *places, depth], [total, *kept]
    return sum(size * (bounds[i + 1] - bounds[i]) for i, size in enumerate(sizes)) / depth


@pytest.mark.parametrize(
    ("keep", "ratio", "kept"),
    [(192 / 576, 0.5596, [322, 180, 100]), (128 / 576, 0.4197, [241, 101, 42]), (64 / 576, 0.1916, [110, 21, 4])],
)
def test_pyramiddrop_on_average_solves_for_lambda(keep: float, ratio: float, kept: list[int]) -> None:
    method = PyramidDrop(average=True)
    assert layers_of(method) == [2, 8, 16]
    assert method.ratio(keep, [2, 8, 16], 32) == pytest.approx(ratio, abs=1e-4)
    assert counts_of(method, keep, 576) == counts_of(method, round(576 * keep), 576) == kept


def test_pyramiddrop_by_default() -> None:
    assert layers_of(PyramidDrop()) == [8, 16, 24] and layers_of(PyramidDrop(), QWEN2) == [7, 14, 21]
    assert counts_of(PyramidDrop(), 0.5, 576) == counts_of(PyramidDrop(), 288, 576) == [288, 144, 72]
    assert counts_of(PyramidDrop(layers=(4, 20)), 0.7, 100) == [70, 49]
    assert counts_of(PyramidDrop(), 0.1, 20) == [2, 1, 1]


@given(st.floats(0.08, 0.99), st.integers(4, 80), st.integers(50, 3000))
@settings(max_examples=50, deadline=None)
def test_pyramiddrop_meets_the_average_at_any_depth(keep: float, depth: int, total: int) -> None:
    method, info = PyramidDrop(average=True), ModelInfo("qwen3_vl", 24, depth, has_cls=False)
    places = method.schedule(info)
    if keep <= places[0] / depth:
        with pytest.raises(vlmprune.UserError, match="layers see every token"):
            acts_of(method, keep, info)
        return
    got = entering(counts_of(method, keep, total, info), list(places), total, depth) / total
    assert abs(got - keep) < 3 / total + 1e-9


@pytest.mark.parametrize("family", SIX)
def test_behind_a_stage_before_the_llm_it_equals_the_oracle_too(family: str) -> None:
    recipe, inputs = Recipe((Stage(DivPrune(), 0.6), Stage(PyramidDrop(), 0.5))), inputs_of(family, RAGGED)
    tokens, logits, report = run_on(family, recipe, inputs)
    expected = oracle(family, RAGGED, inputs, tokens, report, policies(recipe, family))
    assert largest(logits, expected) < TOLERANCE
    for image, seed in enumerate(RAGGED[0]):  # shares count what the stage before leaves
        counts = [len(kept[0][image]) for _, kept in report.stages]
        first = round(0.6 * FAMILIES[family].slots(seed))
        assert counts == [first, *(max(1, int(first * 0.5**act)) for act in range(1, len(counts)))]
