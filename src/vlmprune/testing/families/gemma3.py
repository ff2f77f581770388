"""Gemma3: a slot pooled from 2 x 2 patches, sliding windows, and images that see themselves in both directions."""

from vlmprune.testing.family import ONE_SIZE, OWN_MASK, Family
from vlmprune.testing.images import whole
from vlmprune.testing.weights import (
    DOUBLE_BREAK,
    GEMMA,
    IMAGE,
    IMAGE_BEGIN,
    IMAGE_END,
    SLIDING,
    builder,
    siglip,
)

_build = builder(
    "Gemma3", siglip(32, vision_use_head=False), {"model_type": "gemma3_text", **GEMMA, **SLIDING},
    image_token_index=IMAGE, boi_token_index=IMAGE_BEGIN, eoi_token_index=IMAGE_END, mm_tokens_per_image=16,
)  # fmt: skip
FAMILIES = {
    "gemma3": Family(
        "gemma3", _build, whole(32, 2, (DOUBLE_BREAK, IMAGE_BEGIN), (IMAGE_END, DOUBLE_BREAK)),
        types=("token_type_ids", (0, 1, 0)), lacks={"downsample": ONE_SIZE, "by hand": OWN_MASK},
    )
}  # fmt: skip
