"""Qwen2.5-VL: Qwen2-VL with windows in the tower, and videos that say how many seconds lie between frames."""

from dataclasses import replace

from vlmprune.testing.family import Family
from vlmprune.testing.images import by_turns
from vlmprune.testing.qwen import IDS, TEXT, TOWER, TYPES, image, video
from vlmprune.testing.weights import builder, mrope

_images = Family(
    "qwen2_5_vl",
    builder(
        "Qwen2_5_VL", {**TOWER, "window_size": 16, "fullatt_block_indexes": [1, 3]}, {**TEXT, **mrope(1, 1, 2)}, **IDS
    ),
    image, types=TYPES, window=2,
)  # fmt: skip
FAMILIES = {
    "qwen2_5_vl": _images,
    "qwen2_5_vl video": replace(_images, kind=video(seconds=True)),
    "qwen2_5_vl mixed": replace(_images, kind=by_turns(image, video(seconds=True))),
}
