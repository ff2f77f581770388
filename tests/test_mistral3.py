"""Mistral 3 with the decoder of Mistral Small 4: experts, and keys and values made from one latent vector per token."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from harness import RAGGED, TOLERANCE, generate, largest

import vlmprune
from vlmprune.models import adapter_for
from vlmprune.runtime.oracle import masking_oracle
from vlmprune.testing import FAMILIES, image_numbers, prompt
from vlmprune.testing.pixtral import TOWER
from vlmprune.testing.weights import IMAGE, TEXT, builder

SPEC = "divprune:0.4 > fastv@2:0.5"
DECODER = {
    "model_type": "mistral4", **TEXT, "num_key_value_heads": 4, "head_dim": 8, "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4, "v_head_dim": 8, "kv_lora_rank": 16, "q_lora_rank": 16, "n_routed_experts": 4,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
SMALL_4 = replace(FAMILIES["mistral3"], build=builder("Mistral3", TOWER, DECODER, image_token_index=IMAGE))


@cache
def built() -> Any:
    return SMALL_4.build()


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_latent_keys_equal_the_oracle(positions: str) -> None:
    torch.set_num_threads(1)
    model, inputs = built(), prompt(SMALL_4, RAGGED)
    with vlmprune.prune(model, SPEC, positions=positions) as session:
        tokens, logits = generate(model, inputs)
    numbers, policies = image_numbers(SMALL_4, RAGGED), {0: positions, 2: positions}
    assert largest(logits, masking_oracle(model, inputs, tokens, session.last, policies, numbers)) < TOLERANCE
    assert [after < before for before, after in session.last.tokens] == [True, True]


def test_another_tower_gets_the_generic_adapter() -> None:
    model = built()
    kinds = [type(adapter_for(model)).__name__]
    model.config.vision_feature_layer = [-1, -2]
    kinds.append(type(adapter_for(model)).__name__)
    model.config.vision_feature_layer = -1
    assert kinds == ["Mistral3Adapter", "GenericAdapter"]
