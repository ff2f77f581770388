"""Omni models: the wrapper that also speaks, and films whose sound track stands between the slots of their frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from harness import RAGGED, STEPS, TOLERANCE, built, generate, inputs_of, largest
from torch import Tensor

import vlmprune
from vlmprune import UserError
from vlmprune.models import adapter_for
from vlmprune.runtime.oracle import masking_oracle
from vlmprune.testing import FAMILIES
from vlmprune.testing.families.qwen_omni import AUDIO, AUDIO_END, AUDIO_START
from vlmprune.testing.weights import VIDEO, VISION_END, VISION_START

SPECS = ("divprune:0.4", "fastv@2:0.4", "divprune:0.6 > fastv@2:0.5")


class Mute(torch.nn.Module):
    """Stands where a talker would: Qwen2.5-Omni asks it for a token even where only text is wanted."""

    codec_pad_token = 0


def wrapper(name: str) -> Any:
    """A Qwen2.5-Omni or Qwen3-Omni around the tiny thinker, which would speak if it were let."""
    whole_class = {"qwen2_5_omni_thinker": "Qwen2_5Omni", "qwen3_omni_moe_thinker": "Qwen3OmniMoe"}[name]
    whole_class = getattr(transformers, f"{whole_class}ForConditionalGeneration")
    whole = whole_class.__new__(whole_class)
    torch.nn.Module.__init__(whole)
    config = whole_class.config_class(thinker_config=built(name).config.to_dict(), enable_audio_output=False)
    whole.config, whole.thinker, whole.talker = config, built(name), Mute()
    whole.has_talker, whole.speaker_map = True, {"Chelsie": {}}
    return whole


WRAPPED = ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")
TEXT_ONLY = {
    "generation_mode": "text", "thinker_max_new_tokens": STEPS, "thinker_do_sample": False,
    "thinker_return_dict_in_generate": True, "thinker_output_logits": True,
}  # fmt: skip


def check_wrapper(name: str, inputs: dict[str, Any], spec: str) -> None:
    """What its generate writes is what its thinker's does, pruned as much."""
    model = wrapper(name)
    with vlmprune.prune(model, spec) as session:
        found = model.generate(**inputs, **TEXT_ONLY)
        report = session.last
    assert adapter_for(model).model is model.thinker and all(after < before for before, after in report.tokens)
    with vlmprune.prune(model.thinker, spec):
        tokens, logits = generate(model.thinker, inputs)
    found = found[0] if type(found) is tuple else found
    assert torch.equal(found.sequences[:, -STEPS:], tokens) and torch.equal(torch.stack(found.logits, 1), logits)
    assert largest(logits[:, 0], generate(model.thinker, inputs)[1][:, 0]) > 50 * TOLERANCE
    assert "generate" not in vars(model)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", WRAPPED)
def test_generate_of_the_wrapper_is_pruned(name: str, spec: str) -> None:
    check_wrapper(name, inputs_of(name, RAGGED), spec)
    check_wrapper(name, inputs_of(f"{name} video", RAGGED), spec)


def test_generate_of_the_wrapper_is_pruned_with_the_sound_of_a_film() -> None:
    check_wrapper("qwen2_5_omni_thinker", film(), SPECS[2])


@pytest.mark.parametrize("asked", [{}, {"generation_mode": "audio"}, {"return_audio": True, "generation_mode": "text"}])
@pytest.mark.parametrize("name", WRAPPED)
def test_a_pruned_prompt_is_not_spoken_about(name: str, asked: dict[str, Any]) -> None:
    if "return_audio" in asked and name == "qwen2_5_omni_thinker":
        asked = {"return_audio": False}  # which it does not know
    model, inputs = wrapper(name), inputs_of(name, [[0]])
    with vlmprune.prune(model, "divprune:0.4"), pytest.raises(UserError, match="generation_mode"):
        model.generate(**inputs, **asked)
    assert "generate" not in vars(model)


def film(frames: int = 2, slots: int = 8, sound: int = 2) -> dict[str, Tensor]:
    """A film of which each frame's slots stand before some of its sound."""
    parts = [*[VIDEO] * slots, *[AUDIO] * sound] * frames
    ids = [1, 11, 12, VISION_START, AUDIO_START, *parts, AUDIO_END, VISION_END, 21, 22, 23]
    arguments = FAMILIES["qwen2_5_omni_thinker video"].image(0)[0]
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long), **arguments,
        "input_features": torch.randn(1, 16, 16, generator=generator),
        "feature_attention_mask": torch.ones(1, 16, dtype=torch.long), "use_audio_in_video": True,
    }  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_sound_is_never_touched(spec: str) -> None:
    name = "qwen2_5_omni_thinker"
    model, inputs = built(name), film()
    ids = inputs["input_ids"][0]
    with vlmprune.prune(model, spec) as session:
        tokens, logits = generate(model, inputs)
        report = session.last
    stay = {int(column) for column in (ids != VIDEO).nonzero()[:, 0]}
    assert stay <= set(report.columns[0].tolist()) and report.tokens[0][1] < report.tokens[0][0] == 16
    numbers = torch.where(inputs["input_ids"] == VIDEO, 0, -1)
    policies = vlmprune.recipe(spec).on(adapter_for(model).info).policies()
    expected = masking_oracle(model, inputs, tokens, report, policies, numbers)
    assert largest(logits, expected) < TOLERANCE
