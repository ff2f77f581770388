"""MustDrop, AutoPrune, FitPrune, TopV: what each owes its caller, and how shares count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_runners.spatial_merge import SpatialMerge
from harness import (
    RAGGED,
    TOLERANCE,
    built,
    inputs_of,
    largest,
    oracle,
    policies,
)
from harness_staged import LLAVA, SIX, run_on

from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.view import ModelInfo
from vlmprune.methods.decoder.autoprune import AutoPrune
from vlmprune.methods.decoder.fitprune import FitPrune
from vlmprune.methods.decoder.fitprune_curves import entering, published
from vlmprune.methods.decoder.mustdrop import MustDrop
from vlmprune.methods.decoder.topv import TopV
from vlmprune.methods.vision.divprune import DivPrune
from vlmprune.models import adapter_for
from vlmprune.testing import FAMILIES

QWEN = ModelInfo("qwen2_5_vl", encoder_layers=32, decoder_layers=28, has_cls=False)


families = pytest.mark.parametrize("family", SIX)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@families
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


@pytest.mark.parametrize("cls", [MustDrop, AutoPrune, FitPrune, TopV, SpatialMerge])
def test_a_method_says_what_it_is(cls: type[Method]) -> None:
    assert cls.summary and "\n" not in cls.summary and len(cls.summary) < 110
    for heading in ("Paper:", "Formula:", "Defaults:", "Args:", "Differences from the authors' code:"):
        assert heading in (cls.__doc__ or ""), heading
    if cls in (MustDrop, AutoPrune, SpatialMerge):
        assert [cls().positions(info) for info in (LLAVA, QWEN)] == ["compact", "original"]
    else:
        assert cls().positions(LLAVA) == "original"


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (MustDrop, {"key_share": 1.5}),
        (MustDrop, {"kv_prune": 1}),
        (MustDrop, {"global_threshold": -1.0, "individual_threshold": 0.1}),
        (AutoPrune, {"flash": "yes"}),
        (AutoPrune, {"mi_rows": "all"}),
        (AutoPrune, {"mi_reduce": "max"}),
        (AutoPrune, {"gamma": -0.1}),
        (AutoPrune, {"x0": "14"}),
        (FitPrune, {"compat": "official"}),
        (TopV, {"feature": "l1"}),
        (TopV, {"eps": 0}),
        (TopV, {"recover": 2}),
        (TopV, {"iterations": 0}),
        (SpatialMerge, {"side": 1}),
    ],
)
def test_a_wrong_option_is_one_sentence(cls: type[Method], options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^{cls.name}: {next(iter(options))}=.* must be .*\.$"):
        cls(**options)
