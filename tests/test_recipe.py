"""Recipes: what is written is what is meant, and every mistake gets one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.needs import Need
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import Recipe, Stage, recipe
from vlmprune.core.view import ModelInfo
from vlmprune.methods.decoder.dart import Dart
from vlmprune.methods.decoder.fastv import FastV
from vlmprune.methods.vision.hiprune import HiPrune
from vlmprune.methods.vision.random import Random
from vlmprune.methods.vision.visionzip import VisionZip

LLAVA = ModelInfo("llava", encoder_layers=24, decoder_layers=32, has_cls=True)


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("hiprune:0.222", [Stage(HiPrune(), 0.222)]),
        ("hiprune(alpha=0.3, compat=official):64", [Stage(HiPrune(alpha=0.3, compat="official"), 64)]),
        ("  random@2 : 1.0 ", [Stage(Random(layer=2), 1.0)]),
        ("random:1", [Stage(Random(), 1)]),
        ("visionzip(contextual=10):64", [Stage(VisionZip(contextual=10), 64)]),
        ("dart(image_pivots=10,text_pivots=5)@3:0.1", [Stage(Dart(layer=3, image_pivots=10, text_pivots=5), 0.1)]),
        ("hiprune:0.5>fastv@2:0.333", [Stage(HiPrune(), 0.5), Stage(FastV(layer=2), 0.333)]),
    ],
)
def test_a_string_says_which_methods_with_which_options_and_budgets(text: str, stages: list[Stage]) -> None:
    parsed = vlmprune.recipe(text)
    assert parsed == Recipe(tuple(stages))
    assert vlmprune.recipe(str(parsed)) == parsed


@pytest.mark.parametrize("name", sorted(vlmprune.METHODS))
def test_every_method_goes_round_as_a_string(name: str) -> None:
    once = recipe(name, keep=0.25)
    assert recipe(str(once)) == once
    assert str(recipe(str(once))) == str(once)


budgets = st.one_of(st.integers(1, 5000), st.floats(1e-6, 1.0))


@given(
    alpha=st.floats(0, 1),
    object_layer=st.none() | st.integers(0, 40),
    layer=st.none() | st.integers(1, 40),
    pivots=st.integers(1, 9),
    keeps=st.tuples(budgets, budgets, budgets),
)
def test_any_options_and_budgets_go_round(alpha, object_layer, layer, pivots, keeps) -> None:
    methods = (HiPrune(alpha=alpha, object_layer=object_layer), Random(layer=layer), Dart(layer=7, text_pivots=pivots))
    chain = Recipe(tuple(Stage(method, keep) for method, keep in zip(methods, keeps)))
    assert recipe(str(chain)) == chain


def test_a_method_object_and_a_recipe_are_taken_where_a_name_is() -> None:
    method = HiPrune(alpha=0.2)
    assert recipe(method, 64) == recipe("hiprune", 64, alpha=0.2) == recipe("hiprune(alpha=0.2):64")
    stage = Stage(method, 64)
    assert recipe(stage) == recipe(Recipe((stage,))) == Recipe((stage,))


@pytest.mark.parametrize(
    "keep", [0, -1, -0.5, 7.0, 1.5, math.nan, math.inf, True, False, "0.5", None, [], [[]], [0.5, [0.5]], [0.5, 2.0]]
)
def test_a_budget_out_of_range_is_refused(keep) -> None:
    with pytest.raises(UserError) as caught:
        recipe("hiprune", keep=keep)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("text", ["0", "0.0", "-1", "7.0", "nan", "inf", "all", "", "1e9"])
def test_a_written_budget_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe(f"hiprune:{text}")
    assert_one_sentence(caught.value)


@pytest.mark.parametrize(
    ("spec", "given_beside", "words"),
    [
        ("hiprun:0.5", {}, ["'hiprun'", "did you mean 'hiprune'"]),
        ("zzz:0.5", {}, ["'zzz'", "list methods"]),
        ("hiprune", {}, ["hiprune", "needs a budget"]),
        ("hiprune:0.5", {"keep": 0.5}, ["given twice"]),
        ("hiprune:0.5 > fastv@2:0.5", {"keep": 0.5}, ["budgets"]),
        ("hiprune > fastv@2:0.5", {"keep": 0.5}, ["budgets"]),
        ("hiprune > fastv@2:0.5", {}, ["hiprune", "needs a budget"]),
        ("hiprune:0.5", {"beta": 1}, ["hiprune", "'beta'", "alpha"]),
        ("hiprune(beta=1):0.5", {}, ["hiprune", "'beta'", "alpha"]),
        ("hiprune(alpha=0.1):0.5", {"alpha": 0.2}, ["alpha", "given twice"]),
        ("fastv@2:0.5", {"layer": 3}, ["layer", "given twice"]),
        ("hiprune@8:0.5", {}, ["hiprune", "'layer'", "object_layer"]),
        ("fastv@2,3:0.5", {}, ["fastv", "'layers'", "layer"]),
        ("fastv@0:0.5", {}, ["fastv", "layer=0"]),
        ("hiprune(alpha=-1):0.5", {}, ["hiprune", "alpha=-1"]),
        ("hiprune(alpha):0.5", {}, ["'alpha'", "option=value"]),
        ("hiprune(compat=paperish):0.5", {}, ["hiprune", "compat='paperish'", "official"]),
        ("hiprune(object_layer=1.5):0.5", {}, ["hiprune", "object_layer=1.5"]),
        ("divprune(score_dtype=int8):0.5", {}, ["divprune", "score_dtype", "float16"]),
        ("visionzip(contextual=-2):0.5", {}, ["visionzip", "contextual=-2"]),
        ("visionzip(contextual=1.5):0.5", {}, ["visionzip", "contextual=1.5"]),
        ("visionzip(contextual=True):0.5", {}, ["visionzip", "contextual=True"]),
        ("dart(image_pivots=0, text_pivots=0):0.5", {}, ["dart", "pivot"]),
        ("dart(image_pivots=many):0.5", {}, ["dart", "image_pivots='many'"]),
        ("hiprune:0.5 >", {}, ["is not a stage"]),
        ("", {}, ["names no method"]),
        (" > ", {"keep": 0.5}, ["names no method"]),
        ("DivPrune:0.5", {}, ["did you mean 'divprune'"]),
        ("hiprune:0.5:0.5", {}, ["is not a stage"]),
        ("hiprune:0.5 > fastv@2:0.5", {"layer": 3}, ["in the chain"]),
        (3, {"keep": 0.5}, ["3", "is not a method"]),
        (HiPrune(), {"keep": 0.5, "alpha": 0.2}, ["hiprune", "object"]),
        (recipe("hiprune:0.5"), {"keep": 0.5}, ["recipe", "again"]),
    ],
)
def test_a_mistake_gets_one_sentence_that_names_it(spec, given_beside, words) -> None:
    with pytest.raises(UserError) as caught:
        recipe(spec, **given_beside)
    assert_one_sentence(caught.value)
    for word in words:
        assert word in str(caught.value)


def assert_one_sentence(error: Exception) -> None:
    text = str(error)
    assert "\n" not in text and text.endswith((".", "?")) and 10 < len(text) < 250


@pytest.mark.parametrize(
    "text",
    [
        "fastv@2:0.5 > hiprune:0.5",
        "fastv@3:0.5 > dart@2:0.5",
        "fastv@2:0.5 > dart@2:0.5",
        "hiprune:0.5 > downsample:0.5",
        "downsample:0.5 > downsample:0.5",
        "fastv@32:0.5",
        "random@40:0.5",
        "hiprune:0.5 > fastv@32:0.5",
    ],
)
def test_stages_that_cannot_act_in_their_order_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        vlmprune.recipe(text).check(LLAVA)


@pytest.mark.parametrize(
    "text", ["downsample:0.5 > hiprune:0.5 > divprune:0.5 > fastv@2:0.5 > dart@3:0.5", "random:0.5 > random@31:0.5"]
)
def test_stages_in_acting_order_are_accepted(text: str) -> None:
    vlmprune.recipe(text).check(LLAVA)


@dataclass
class Numbering(Random):
    """Acts at several layers, tells how tokens are numbered, and counts what it is asked."""

    name = "numbering"
    policy: str = "original"
    asked: ClassVar[list[str]] = []

    def acts(self, info: ModelInfo, keep: object) -> tuple[int | None, ...]:
        return (None,) if self.layer is None else (self.layer, self.layer + 1, self.layer + 2)

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        self.asked.append("needs")
        return {}

    def positions(self, info: ModelInfo) -> str:
        self.asked.append("positions")
        return self.policy


def test_a_plan_tells_how_tokens_are_numbered_behind_each_place() -> None:
    old, new = Numbering(), Numbering(policy="compact")
    for before in ([old, new], [new, old]):  # at one place all are numbered anew where one method does so
        stages = [*(Stage(method, 0.5) for method in before), Stage(Numbering(layer=4), 0.5)]
        plan = Recipe(tuple(stages)).on(LLAVA)
        assert plan.policies() == {0: "compact", 4: "original", 5: "original", 6: "original"}
        assert set(plan.policies("original").values()) == {"original"}
        assert set(plan.policies("compact").values()) == {"compact"}
    assert Recipe((Stage(old, 0.5),)).on(LLAVA).policies() == {0: "original"}


def test_a_method_is_asked_no_more_the_more_often_it_acts() -> None:
    asked = []
    for method, acts in ((Numbering(), 1), (Numbering(layer=4), 3)):
        Numbering.asked.clear()
        assert len(acts_of(method, 0.5, LLAVA)) == acts
        asked.append(sorted(Numbering.asked))
    assert asked[0] == asked[1] and set(asked[0]) == {"needs", "positions"}
