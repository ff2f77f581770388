"""FitPrune and its calibration."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import (
    RAGGED,
    TOLERANCE,
    alone,
    built,
    inputs_of,
    largest,
    oracle,
    policies,
)
from harness_staged import HYBRID, LLAVA, SIX, run_on
from hypothesis import given, settings
from hypothesis import strategies as st

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.signals import TextQueryAttention, VisualQueryAttention
from vlmprune.core.view import ImageView, ModelInfo
from vlmprune.fit.calibration import Fit, _Log, _Trial, fitprune
from vlmprune.methods.decoder.fitprune import FitPrune, expendable
from vlmprune.methods.decoder.fitprune_curves import entering, mean, published
from vlmprune.methods.vision.divprune import DivPrune
from vlmprune.models import adapter_for
from vlmprune.testing import FAMILIES

QWEN = ModelInfo("qwen2_5_vl", encoder_layers=32, decoder_layers=28, has_cls=False)


def test_the_score_needs_both_kinds_of_attention() -> None:
    assert FitPrune().needs(LLAVA) == {
        "visual": VisualQueryAttention(heads="max"),
        "text": TextQueryAttention(heads="max"),
    }
    visual, text = torch.tensor([0.1, 0.4, 0.2]), torch.tensor([[0.5, 0.0, 0.1], [0.5, 0.0, 0.2]])
    view = ImageView(1, torch.arange(3), None, LLAVA, {"visual": visual, "text": text})
    assert torch.allclose(FitPrune().score(view), torch.tensor([0.1, 0.0, 0.06]))
    assert FitPrune().select(view).tolist() == [0]
    assert FitPrune(compat="uniprune").select(view).tolist() == [1]
    view.signals = {"visual": visual, "text": torch.zeros(0, 3)}
    assert FitPrune().select(view).tolist() == [1]


@settings(max_examples=60, deadline=None)
@given(st.floats(0.04, 0.999), st.integers(2, 60))
def test_curves_have_the_mean_that_is_asked_and_never_rise(keep: float, depth: int) -> None:
    curve = entering(published(), keep, depth)
    assert len(curve) == depth and abs(mean(curve) - keep) < 1e-9
    assert all(a >= b - 1e-12 for a, b in pairwise(curve)) and curve[-1] >= -1e-12


@pytest.mark.parametrize(("info", "acts"), [(LLAVA, 31), (QWEN, 27), (HYBRID, 7)])
def test_every_layer_that_can_be_read_deletes(info: ModelInfo, acts: int) -> None:
    made = acts_of(FitPrune(), 0.3, info)
    assert len(made) == acts
    left = [576]
    for act in made:
        left.append(act.budget(left[-1], 576))
    curve = entering(published(), 0.3, info.decoder_layers)
    assert left[-1] == round(576 * curve[made[-1].layer or 0]) and left == sorted(left, reverse=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 999), st.floats(0, 1), st.floats(1, 1.3))
def test_expendable_is_the_two_prefixes_in_common(n: int, seed: int, alpha: float, more: float) -> None:
    cross, own = torch.rand(2, n, generator=torch.Generator().manual_seed(seed))
    whole = float(cross.sum()) * more, float(own.sum()) * more
    sets = []
    for values, total in zip((cross, own), whole, strict=True):
        left, gone = float(values.double().sum()), set()
        for i in values.argsort().tolist():
            left -= float(values[i])
            if left < (1 - alpha) * total:
                break
            gone.add(i)
        sets.append(gone)
    by_cross, by_self, both = expendable(cross, own, whole, alpha)
    assert abs(by_cross - len(sets[0])) <= (alpha > 0.999) and abs(by_self - len(sets[1])) <= (alpha > 0.999)
    if alpha <= 0.999:
        assert both.tolist() == sorted(sets[0] & sets[1])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_calibration(family: str, tmp_path: Path) -> None:
    model, batches = built(family), [inputs_of(family, RAGGED), inputs_of(family, [[3]])]
    steps: list[tuple[float, float]] = []
    fit = fitprune(model, batches, 0.5, progress=lambda *step: steps.append(step))
    assert fit.images == 4 and len(fit.shares) == 4 and fit.shares[0] == 1.0
    assert mean(fit.shares) == pytest.approx(fit.keep) and fit.keep <= 0.5
    met = [alpha for alpha, share in steps if share <= 0.5]
    missed = [alpha for alpha, share in steps if share > 0.5]
    assert fit.alpha == min(met) and max(missed) < fit.alpha < max(missed) + 0.02
    assert fit.keep == dict(steps)[fit.alpha]  # the recipe is that of the last alpha that met the budget
    assert "_vlmprune_session" not in model.__dict__
    fit.save(tmp_path / "fit.json")
    assert Fit.load(tmp_path / "fit.json") == fit
    reports = []
    for recipe in (fit.shares, str(tmp_path / "fit.json")):
        with vlmprune.prune(model, FitPrune(recipe=recipe), fit.keep) as session:
            model(**batches[0])
        reports.append(session.last)
    for layer, share in zip((1, 2, 3), fit.shares[1:], strict=True):
        for row, images in enumerate(dict(reports[0].stages)[layer]):
            for image, kept in enumerate(images):
                assert len(kept) == max(1, round(share * FAMILIES[family].slots(RAGGED[row][image])))
    assert reports[0].entering == reports[1].entering


def test_once_the_budget_is_met_the_remaining_layers_delete_nothing() -> None:
    log = _Log(depth=5, left=[{1: 0.5, 2: 0.25, 3: 0.1, 4: 0.05}, {1: 0.7, 2: 0.35}])
    assert log.shares(0.6) == pytest.approx((1.0, 0.6, 0.3, 0.3, 0.3))  # 1 + 0.6 + 3 * 0.3 of 5 * 0.6
    assert log.shares(0.1) == pytest.approx((1.0, 0.6, 0.3, 0.225, 0.2))


def test_a_trial_goes_by_what_its_own_layer_paid_in_the_unpruned_model() -> None:
    text, own = torch.tensor([[0.4, 0.3, 0.2, 0.1]]), torch.tensor([0.1, 0.4, 0.3, 0.2])

    def kept(alpha: float) -> list[int]:
        log = _Log(depth=3, totals=[{1: (9.0, 9.0), 2: (1.0, 1.0)}], alpha=alpha)
        method = _Trial(log=log)
        view = ImageView(3, torch.arange(4), None, LLAVA, {"text": text, "visual": own}, total=8)
        chosen = method.select(replace(view, act=acts_of(method, 0.5, LLAVA)[1]))
        assert log.left == [{2: len(chosen) / 8}]
        return chosen.tolist()

    assert kept(0.35) == [0, 1, 2]  # of 3 and 2 by the text, and of 0 and 3 by the image
    assert kept(1.0) == [1]  # where all may go, the highest product stays


@torch.no_grad()
def test_calibration_deletes_by_the_models_own_attention() -> None:
    inputs = alone("llava", RAGGED, 1)
    fit = fitprune(built("llava"), [inputs], 0.4)
    maps = built("llava", "eager")(**inputs, output_attentions=True).attentions[0][0].amax(0)
    own = (inputs["input_ids"][0] == 90).nonzero().squeeze(1)
    cross, visual = maps[own[-1] + 1 :, own].sum(0), maps[own][:, own].mean(0)
    _, _, gone = expendable(cross, visual, (float(cross.sum()), float(visual.sum())), fit.alpha)
    assert fit.shares[1] == pytest.approx(1 - len(gone) / 36)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("/nowhere/fit.json", "must be a JSON file with a list"),
        ((0.5, 0.4), "first 1.0, then never more"),
        ((1.0, 0.4, 0.5), "first 1.0, then never more"),
        ((1.0,), "first 1.0, then never more"),
        ((1.0, "x"), "first 1.0, then never more"),
    ],
)
def test_a_recipe_that_is_none_is_one_sentence(recipe: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FitPrune(recipe=recipe)


def test_calibration_says_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No recipe for this model keeps as little as 0\.2"):
        fitprune(built("llava"), [inputs_of("llava", RAGGED)], 0.2)
    with pytest.raises(UserError, match="is not a share of tokens"):
        fitprune(built("llava"), [], 2)
    with pytest.raises(UserError, match="No image in these prompts"):
        fitprune(built("llava"), [], 0.5)
    (tmp_path / "other.json").write_text(json.dumps({"shares": [1.0, 0.5]}))
    with pytest.raises(UserError, match="is not a recipe that"):
        Fit.load(tmp_path / "other.json")


@pytest.mark.parametrize("family", SIX)
def test_behind_a_stage_before_the_llm_shares_count_what_it_leaves(family: str) -> None:
    recipe, inputs = Recipe((Stage(DivPrune(), 0.6), Stage(FitPrune(), 0.5))), inputs_of(family, RAGGED)
    tokens, logits, report = run_on(family, recipe, inputs)
    expected = oracle(family, RAGGED, inputs, tokens, report, policies(recipe, family))
    assert largest(logits, expected) < TOLERANCE
    curve = entering(published(), 0.5, adapter_for(built(family)).info.decoder_layers)
    for image, seed in enumerate(RAGGED[0]):
        first, now = round(0.6 * FAMILIES[family].slots(seed)), 10**6
        counts = {layer: len(kept[0][image]) for layer, kept in report.stages}
        assert counts.pop(0) == first
        for layer, count in counts.items():
            now = min(now, first, max(1, round(curve[layer] * first)))
            assert count == now
