"""Qwen3-VL: deepstack features, and videos with a timestamp before each frame."""

from dataclasses import replace

from vlmprune.testing.family import Family
from vlmprune.testing.images import by_turns
from vlmprune.testing.qwen import IDS, TOWER, TYPES, image, video
from vlmprune.testing.weights import TEXT, builder, mrope

DEEPSTACK_TOWER = {**TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
INTERLEAVED_TEXT = {**TEXT, "head_dim": 8, **mrope(2, 1, 1, mrope_interleaved=True)}

_images = Family("qwen3_vl", builder("Qwen3VL", DEEPSTACK_TOWER, INTERLEAVED_TEXT, **IDS), image, types=TYPES)
FAMILIES = {
    "qwen3_vl": _images,
    "qwen3_vl video": replace(_images, kind=video(timestamps=True)),
    "qwen3_vl mixed": replace(_images, kind=by_turns(image, video(timestamps=True))),
}
