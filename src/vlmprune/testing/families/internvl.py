"""InternVL: tiles of 2 x 2 shuffled patches in one block, the whole image last."""

from vlmprune.testing.family import ONE_SIZE, Family
from vlmprune.testing.images import tiled
from vlmprune.testing.weights import IMAGE, QWEN2, TOWER, VISION_END, VISION_START, builder

FAMILIES = {
    "internvl": Family(
        "internvl",
        builder("InternVL", {**TOWER, "image_size": 24}, QWEN2, image_token_id=IMAGE, image_seq_length=9),
        tiled(lambda tiles: [VISION_START, *[IMAGE] * 9 * tiles, VISION_END]), cls=True, lacks={"downsample": ONE_SIZE},
    )
}  # fmt: skip
