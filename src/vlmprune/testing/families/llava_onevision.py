"""LLaVA-OneVision: tiles on a canvas that is shrunk where it is too large, and videos of pooled frames."""

from dataclasses import replace

from vlmprune.testing.anyres import ONEVISION, anyres, frames_pooled
from vlmprune.testing.family import OUTSIDE, Family
from vlmprune.testing.images import by_turns
from vlmprune.testing.weights import IMAGE, QWEN2, VIDEO, builder, pinpoints, siglip

_images = Family(
    "llava_onevision",
    builder(
        "LlavaOnevision", siglip(20, vision_use_head=False), QWEN2, image_token_id=IMAGE, video_token_id=VIDEO,
        image_grid_pinpoints=pinpoints(20), vision_aspect_ratio="anyres_max_2",
    ),
    anyres(ONEVISION, 5), lacks={"downsample": OUTSIDE},
)  # fmt: skip
FAMILIES = {
    "llava_onevision": _images,
    "llava_onevision video": replace(_images, kind=frames_pooled),
    "llava_onevision mixed": replace(_images, kind=by_turns(_images.kind, frames_pooled)),
}
