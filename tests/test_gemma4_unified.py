"""Gemma 4 unified: `generate` with a static cache makes other masks than the model itself, and each is followed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import RAGGED, TOLERANCE, built, generate, inputs_of, largest, oracle, policies
from transformers.cache_utils import DynamicCache, StaticCache
from transformers.models.gemma4_unified import modeling_gemma4_unified as modeling
from versions import behind

import vlmprune
from vlmprune.models.gemma4 import Gemma4UnifiedAdapter
from vlmprune.testing import FAMILIES

UNIFIED = [name for name in FAMILIES if name.startswith("gemma4_unified")]
STATIC: dict[str, Any] = {"cache_implementation": "static", "disable_compile": True}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def static_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unpruned model makes the masks of a static cache in a forward without one, as the oracle asks it."""

    def masks(block_sequence_ids: Any = None, **given: Any) -> Any:
        if block_sequence_ids is None:  # `generate` asks for text alone
            return general(**given)
        return modeling.create_masks_for_vision_model(block_sequence_ids=block_sequence_ids, **given)

    general = modeling.create_masks_for_generate
    monkeypatch.setattr(modeling, "create_masks_for_generate", masks)
    monkeypatch.setattr(Gemma4UnifiedAdapter, "window_cuts_blocks", lambda self, cache: True)


@torch.no_grad()
@pytest.mark.parametrize("family", UNIFIED)
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("spec", ["divprune:0.4", "fastv@2:0.4", "divprune:0.6 > random@1:0.6 > fastv@2:3"])
def test_a_static_cache_equals_the_oracle_of_its_rule(
    family: str, positions: str, spec: str, request: pytest.FixtureRequest
) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, spec, positions=positions) as session:
        tokens, logits = generate(model, inputs, **STATIC)
    followed = policies(spec, family, positions)
    other = oracle(family, RAGGED, inputs, tokens, session.last, followed)
    request.getfixturevalue("static_rule")
    assert largest(logits, oracle(family, RAGGED, inputs, tokens, session.last, followed)) < TOLERANCE
    assert largest(logits, other) > 50 * TOLERANCE  # by the rule of other caches


@pytest.mark.parametrize("family", UNIFIED)
def test_keeping_everything_under_a_static_cache_is_bit_identical(family: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    tokens, logits = generate(model, inputs, **STATIC)
    with vlmprune.prune(model, "divprune:1.0"):
        same, pruned = generate(model, inputs, **STATIC)
    assert torch.equal(tokens, same) and torch.equal(logits, pruned)


@torch.no_grad()
def test_masks_that_do_not_come_from_where_the_cache_says_are_refused() -> None:
    model, inputs = built("gemma4_unified"), inputs_of("gemma4_unified", RAGGED)
    masks = {kind: inputs["attention_mask"].bool()[:, None, None] for kind in ("full_attention", "sliding_attention")}
    given: list[dict[str, Any]] = [
        behind(StaticCache(config=model.config.get_text_config(), max_cache_len=128)),
        {**behind(DynamicCache(config=model.config.get_text_config())), "attention_mask": masks},
    ]
    for options in given:
        with vlmprune.prune(model, "divprune:0.4"), pytest.raises(vlmprune.UserError, match="leave static caches to"):
            model(**{**inputs, **options})
