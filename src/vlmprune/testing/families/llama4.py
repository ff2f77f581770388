"""Llama 4: rows of tiles of 2 x 2 patches a slot, a marker behind each, then the whole image behind another one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transformers.masking_utils import create_chunked_causal_mask

from vlmprune.testing.family import ONE_SIZE, Family
from vlmprune.testing.images import tiled
from vlmprune.testing.weights import IMAGE, IMAGE_BEGIN, IMAGE_END, TEXT, TOWER, WHOLE_IMAGE, builder

COLUMN, ROW = 80, 81  # <|tile_x_separator|>, <|tile_y_separator|>
LACKS = {
    "downsample": ONE_SIZE,
    "sampling": "transformers does not repeat its encoded images with the prompt, and ends in an error",
}
if "block_sequence_ids" not in inspect.signature(create_chunked_causal_mask).parameters:  # 5.19
    LACKS["static cache"] = "transformers hands its masks an argument that they do not take, and ends in an error"


def _ids(tiles: int) -> list[int]:
    """Tiles stand in rows of two."""
    slots = [IMAGE] * 9
    marked = [token for tile in range(tiles - 1) for token in (*slots, ROW if tile % 2 else COLUMN)]
    return [IMAGE_BEGIN, *marked, WHOLE_IMAGE, *slots, IMAGE_END]


ROPE = {"rope_type": "default", "rope_theta": 10000.0}
VISION = {
    **TOWER, "image_size": 24, "intermediate_size": 128, "vision_output_dim": 40, "projector_input_dim": 40,
    "projector_output_dim": 40, "rope_parameters": ROPE,
}  # fmt: skip
DECODER = {**TEXT, "head_dim": 8, "intermediate_size": 24, "intermediate_size_mlp": 48, "num_local_experts": 4}
IDS = {"image_token_index": IMAGE, "boi_token_index": IMAGE_BEGIN, "eoi_token_index": IMAGE_END}
SCALED = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 16.0, "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip


def _mended(build: Callable[..., Any]) -> Callable[..., Any]:
    """Models that run on transformers 5.24, too: there, every forward looks for a field that no output has."""

    def give(module: Any, args: Any, output: Any) -> None:
        if not hasattr(output, "image_outputs"):
            output.image_outputs = None

    def built(attention: str = "sdpa") -> Any:
        model = build(attention)
        model.language_model.register_forward_hook(give)
        return model

    return built


# Like Scout: experts in every layer, queries and keys with a norm
_scout = builder(
    "Llama4", VISION, {**DECODER, "no_rope_layer_interval": 2, "rope_parameters": SCALED, "use_qk_norm": True}, **IDS
)
# Like Maverick: experts in every other layer, no such norm
_maverick = builder(
    "Llama4", VISION, {**DECODER, "interleave_moe_layer_step": 2, "rope_parameters": ROPE, "use_qk_norm": False}, **IDS
)
_family = Family("llama4", _mended(_scout), tiled(_ids), cls=True, cls_last=True, lacks=LACKS)
FAMILIES = {"llama4": _family, "llama4 with dense layers": replace(_family, build=_mended(_maverick))}
