"""Qwen-Omni: the thinker of a model that also hears and speaks; tokens of sound are never touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmprune.models.base import HALF
from vlmprune.models.qwen2_5_vl import Qwen25VLAdapter
from vlmprune.models.qwen2_vl import Qwen2VLAdapter


def _with_sound(inputs: Mapping[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """What `get_rope_index` reads under other names than those of the inputs: seconds per frame, lengths of sounds."""
    lengths = inputs.get("audio_feature_lengths")
    if inputs.get("feature_attention_mask") is not None:
        lengths = inputs["feature_attention_mask"].sum(-1)
    more = {"second_per_grids": inputs.get("video_second_per_grid"), "audio_seqlens": lengths}
    return {**known, **{name: value for name, value in more.items() if value is not None}}


class Qwen25OmniAdapter(Qwen25VLAdapter):
    """Qwen2.5-Omni's thinker: Qwen2.5-VL's tower; the sound of a film stands between the slots of its frames."""

    families = ("qwen2_5_omni_thinker",)

    def position_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return _with_sound(inputs, super().position_inputs(inputs))


class Qwen3OmniAdapter(Qwen2VLAdapter):
    """Qwen3-Omni's thinker: Qwen3-VL's tower and deepstack features, experts, position ids that are floats."""

    families = ("qwen3_omni_moe_thinker",)
    normalisation = HALF

    def position_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return _with_sound(inputs, super().position_inputs(inputs))
