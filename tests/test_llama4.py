"""Llama 4: attention depends on how many tokens are stored beyond a limit, up to which a pruned answer is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from harness import RAGGED, STEPS, TOLERANCE, built, generate, inputs_of, largest, policies
from torch import Tensor

import vlmprune
from vlmprune import UserError
from vlmprune.models import adapter_for
from vlmprune.models.llama4 import Llama4Adapter
from vlmprune.runtime.oracle import masking_oracle
from vlmprune.testing import FAMILIES, image_numbers

SPEC = "divprune:0.4 > fastv@2:0.5"
LENGTH = inputs_of("llama4", RAGGED)["input_ids"].shape[1] + STEPS - 1  # of the last token that is fed


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def limited(**settings: Any) -> Any:
    """A model whose attention changes with fewer tokens."""
    model = FAMILIES["llama4"].build()
    text = adapter_for(model).text_model
    for name, value in settings.items():
        setattr(text.config, name, value)
        for layer in text.layers:
            if hasattr(layer.self_attn, name):
                setattr(layer.self_attn, name, value)
    return model


def due(model: Any, inputs: dict[str, Any], tokens: Tensor, session: Any, positions: str = "original") -> Tensor:
    numbers, asked = image_numbers(FAMILIES["llama4"], RAGGED), policies(SPEC, "llama4", positions)
    return masking_oracle(model, inputs, tokens, session.last, asked, numbers)


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("settings", [{"attention_chunk_size": LENGTH}, {"floor_scale": LENGTH + 2, "attn_scale": 5.0}])
def test_as_many_tokens_as_change_nothing(settings: dict[str, Any], positions: str) -> None:
    model, inputs = limited(**settings), inputs_of("llama4", RAGGED)
    assert adapter_for(model).longest == LENGTH
    with vlmprune.prune(model, SPEC, positions=positions) as session:
        tokens, logits = generate(model, inputs)
    assert largest(logits, due(model, inputs, tokens, session, positions)) < TOLERANCE


@pytest.mark.parametrize(
    "settings", [{"attention_chunk_size": LENGTH - 1}, {"floor_scale": LENGTH + 1, "attn_scale": 5.0}]
)
def test_one_token_more_is_refused(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last step of the answer, which would be wrong."""
    model, inputs = limited(**settings), inputs_of("llama4", RAGGED)
    reason = rf"^Beyond {LENGTH - 1} tokens, attention in llama4 depends .* and these are {LENGTH}: "
    with vlmprune.prune(model, SPEC, positions="original"), pytest.raises(UserError, match=reason):
        generate(model, inputs)
    with vlmprune.prune(model, SPEC, positions="original"):
        generate(model, inputs, max_new_tokens=STEPS - 1)
    monkeypatch.setattr(Llama4Adapter, "longest", None)
    with vlmprune.prune(model, SPEC, positions="original") as session:
        tokens, logits = generate(model, inputs)
    wrong = logits - due(model, inputs, tokens, session)
    assert float(wrong[:, :-1].abs().max()) < TOLERANCE < float(wrong[:, -1].abs().max()) / 50


def test_a_prompt_that_is_too_long_is_refused_where_it_would_be_pruned() -> None:
    model, inputs = limited(attention_chunk_size=20), inputs_of("llama4", RAGGED)
    with vlmprune.prune(model, SPEC):
        with pytest.raises(UserError, match=r"^Beyond 20 tokens"):
            model(**inputs)
        text = {"input_ids": torch.arange(3, 43)[None], "attention_mask": torch.ones(1, 40, dtype=torch.long)}
        pruned = model(**text).logits
    assert torch.equal(pruned, model(**text).logits)


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        (lambda text: None, 8190),
        (lambda text: setattr(text, "attn_temperature_tuning", False), 8192),
        (lambda text: setattr(text, "no_rope_layers", [1] * 4), 8192),
        (lambda text: setattr(text, "layer_types", ["full_attention"] * 4), 8190),
        (lambda text: vars(text).update(layer_types=["full_attention"] * 4, attn_temperature_tuning=False), None),
    ],
    ids=["as released", "not tuned", "positions everywhere", "no chunks", "neither"],
)
def test_what_limits_the_length(change: Callable[[Any], None], limit: int | None) -> None:
    adapter = adapter_for(FAMILIES["llama4"].build())
    change(adapter.text_config)
    assert adapter.longest == limit


@pytest.mark.skipif(not transformers.__version__.startswith("5.24."), reason="of transformers 5.24 alone")
def test_what_the_tiny_models_are_given() -> None:
    """Without it, transformers 5.24 runs no Llama 4, pruned or not."""
    model = FAMILIES["llama4"].build()
    model.language_model._forward_hooks.clear()
    with pytest.raises(AttributeError, match="no attribute 'image_outputs'"):
        model(**inputs_of("llama4", [[0]]))


def test_beams_are_refused() -> None:
    """transformers repeats what encoders pool, and Llama 4's does not."""
    model = built("llama4")
    with vlmprune.prune(model, "divprune:0.4"):
        for several in ({"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
            with pytest.raises(UserError, match=r"^transformers loses the images of llama4 .* without beams\.$"):
                generate(model, inputs_of("llama4", RAGGED), **several)
    with pytest.raises(ValueError, match="do not match"):
        model.generate(**inputs_of("llama4", RAGGED), num_beams=2, max_new_tokens=2)
