"""Qwen2-VL: pictures of any size, 2 x 2 patches merged into a slot, M-RoPE."""

from dataclasses import replace

from vlmprune.testing.family import Family
from vlmprune.testing.qwen import IDS, TEXT, TOWER, TYPES, image, video
from vlmprune.testing.weights import builder, mrope

_images = Family(
    "qwen2_vl",
    builder("Qwen2VL", {**TOWER, "embed_dim": 32, "mlp_ratio": 2}, {**TEXT, **mrope(1, 1, 2)}, **IDS),
    image, types=TYPES,
)  # fmt: skip
FAMILIES = {"qwen2_vl": _images, "qwen2_vl video": replace(_images, kind=video())}
