"""Decoders that choose by an index which keys a token sees: cut before the language model, refused inside it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import vlmprune
from vlmprune import UserError
from vlmprune.doctor.prompts import one_prompt, padded_batch
from vlmprune.doctor.proof import Case, proof_recipes
from vlmprune.models import adapter_for
from vlmprune.models.base import Adapter
from vlmprune.models.surveyed import image_text_types
from vlmprune.runtime.oracle import masking_oracle
from vlmprune.testing.guessed import inputs_for
from vlmprune.testing.shrunk import build

# without rotary embeddings, with several streams of states; with recurrent layers and n-grams of the prompt's ids
TYPES = [name for name in ("glm5_next", "qwen4_exp") if name in image_text_types()]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@cache
def adapter_of(name: str) -> Adapter:
    return adapter_for(build(name))


@pytest.mark.parametrize("name", TYPES)
def test_before_the_language_model_it_equals_the_oracle(name: str) -> None:
    """Cached generation, in a padded batch, and in a second turn."""
    adapter = adapter_of(name)
    assert proof_recipes(adapter) == ["divprune:0.5"]
    inputs = inputs_for(adapter)
    Case("divprune:0.5", "compact", padded_batch(adapter, inputs)).judge(adapter)
    Case("divprune:0.5", "original", one_prompt(adapter, inputs), turns=2).judge(adapter)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("spec", ["fastv@2:0.5", "divprune:0.5 > fastv@2:0.5", "pyramiddrop:0.5"])
def test_inside_it_is_refused(name: str, spec: str) -> None:
    with pytest.raises(UserError, match=rf"^The tokens of a {name} can be cut before its language model only, .*\.$"):
        vlmprune.prune(adapter_of(name).model, spec)


@torch.no_grad()
def test_ids_of_which_n_grams_are_made_are_those_of_what_is_left() -> None:
    if "qwen4_exp" not in TYPES:
        pytest.skip("this transformers has no Qwen4-Exp")
    adapter = adapter_of("qwen4_exp")
    inputs, seen = inputs_for(adapter), list[dict[str, Any]]()
    with vlmprune.prune(adapter.model, "divprune:0.5") as session:
        handle = adapter.text_model.register_forward_pre_hook(lambda *call: seen.append(call[2]), with_kwargs=True)
        adapter.model(**inputs)
        handle.remove()
    assert session.last.columns is not None and session.last.tokens == [(8, 4)]
    assert torch.equal(seen[0]["ple_input_ids"], inputs["input_ids"][:, session.last.columns[0]])
    assert seen[0]["ple_input_ids"].shape == seen[0]["inputs_embeds"].shape[:2]


@torch.no_grad()
def test_n_grams_reach_over_the_gaps_in_what_is_answered_too() -> None:
    """They are those of the ids that are left. All slots have one id, so a single one is kept."""
    if "qwen4_exp" not in TYPES:
        pytest.skip("this transformers has no Qwen4-Exp")
    adapter, looked_up = adapter_of("qwen4_exp"), list[Tensor]()
    grams = next(layer.ple.ple_embedding for layer in adapter.decoder_layers if layer.ple is not None)
    inputs = one_prompt(adapter, inputs_for(adapter)).inputs
    with vlmprune.prune(adapter.model, "divprune:1") as session:
        handle = grams.register_forward_hook(lambda _, args, out: looked_up.append(out))
        sequence = adapter.model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        handle.remove()
    assert session.last.columns is not None
    prompt, left = inputs["input_ids"], session.last.columns[0]
    answer = sequence[:, prompt.shape[1] : -1]  # the last token is not read again
    found, expected = torch.cat(looked_up, dim=1), grams(torch.cat([prompt[:, left], answer], dim=1), None)
    assert torch.equal(found, expected)
    whole = grams(torch.cat([prompt, answer], dim=1), None)
    assert not torch.equal(whole[:, left], expected[:, : len(left)])  # behind the image


@pytest.mark.parametrize("name", TYPES[:1])
def test_no_mask_hides_a_token_from_an_index(name: str) -> None:
    adapter = adapter_of(name)
    inputs = one_prompt(adapter, inputs_for(adapter)).inputs
    with vlmprune.prune(adapter.model, "divprune:0.5") as session, torch.no_grad():
        adapter.model(**inputs)
    with pytest.raises(UserError, match="use the cutting oracle"):
        masking_oracle(adapter.model, inputs, torch.tensor([[5]]), session.last)
