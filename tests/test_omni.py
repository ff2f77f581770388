"""Omni models: the wrapper that also speaks, and films whose sound track stands between the slots of their frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from harness import RAGGED, TOLERANCE, built, generate, inputs_of, largest
from torch import Tensor

import vlmprune
from vlmprune import UserError
from vlmprune.models import adapter_for
from vlmprune.runtime.oracle import masking_oracle
from vlmprune.testing import FAMILIES
from vlmprune.testing.families.qwen_omni import AUDIO, AUDIO_END, AUDIO_START
from vlmprune.testing.weights import VIDEO, VISION_END, VISION_START

SPECS = ("divprune:0.4", "fastv@2:0.4", "divprune:0.6 > fastv@2:0.5")


def wrapper() -> Any:
    """A Qwen3-Omni that cannot speak, around the tiny thinker."""
    thinker = built("qwen3_omni_moe_thinker")
    config = transformers.Qwen3OmniMoeConfig(thinker_config=thinker.config.to_dict(), enable_audio_output=False)
    config.talker_config, config.code2wav_config = None, None
    whole = transformers.Qwen3OmniMoeForConditionalGeneration.__new__(transformers.Qwen3OmniMoeForConditionalGeneration)
    torch.nn.Module.__init__(whole)
    whole.config, whole.thinker, whole.has_talker = config, thinker, False
    return whole


def test_generate_of_the_wrapper_is_pruned() -> None:
    model, inputs = wrapper(), inputs_of("qwen3_omni_moe_thinker", RAGGED)
    settings = {"thinker_max_new_tokens": 4, "thinker_do_sample": False, "return_audio": False}
    with vlmprune.prune(model, "divprune:0.4") as session:
        found = model.generate(**inputs, **settings)
        report = session.last
    assert adapter_for(model).model is model.thinker and all(after < before for before, after in report.tokens)
    with vlmprune.prune(model.thinker, "divprune:0.4"):
        expected = model.thinker.generate(**inputs, max_new_tokens=4, do_sample=False)
    tokens = found[0] if isinstance(found, tuple) else found
    assert torch.equal(getattr(tokens, "sequences", tokens), expected)


def test_a_pruned_prompt_is_not_spoken_about() -> None:
    model, inputs = wrapper(), inputs_of("qwen3_omni_moe_thinker", [[0]])
    model.has_talker = True
    with vlmprune.prune(model, "divprune:0.4"), pytest.raises(UserError, match="generation_mode"):
        model.generate(**inputs)
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
