"""Qwen3.5: every other decoder layer is recurrent."""

from dataclasses import replace

from vlmprune.testing.family import Family
from vlmprune.testing.qwen import IDS, TOWER, TYPES, image, video
from vlmprune.testing.weights import TEXT, builder, mrope

PLAIN_TOWER = {**TOWER, "num_position_embeddings": 64}
RECURRENT_TEXT = {
    **TEXT, "head_dim": 16, **mrope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5),
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
RECURRENT_LACKS = {
    "lookup": "transformers refuses assisted decoding on recurrent layers",
    "new image": "recurrent layers have no oracle for padding between turns; without padding it is right",
}

_images = Family(
    "qwen3_5", builder("Qwen3_5", PLAIN_TOWER, RECURRENT_TEXT, **IDS), image, types=TYPES, recurrent=True,
    lacks=RECURRENT_LACKS,
)  # fmt: skip
FAMILIES = {"qwen3_5": _images, "qwen3_5 video": replace(_images, kind=video(timestamps=True))}
