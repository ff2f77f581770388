"""Idefics3: pictures as SmolVLM's."""

from vlmprune.testing.families.smolvlm import marked_tiles
from vlmprune.testing.family import ONE_SIZE, Family
from vlmprune.testing.weights import IMAGE, LLAMA, TOWER, builder

FAMILIES = {
    "idefics3": Family(
        "idefics3", builder("Idefics3", {**TOWER, "image_size": 24}, LLAMA, image_token_id=IMAGE), marked_tiles,
        by_sample=True, lacks={"downsample": ONE_SIZE},
    )
}  # fmt: skip
