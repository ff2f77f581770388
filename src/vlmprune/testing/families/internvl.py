"""InternVL: tiles of 2 x 2 shuffled patches in one block, the whole image last."""

from vlmprune.testing.family import ONE_SIZE, Family
from vlmprune.testing.images import Arguments, Kind, pixels, shuffled
from vlmprune.testing.weights import IMAGE, QWEN2, TOWER, VISION_END, VISION_START, builder


def _tiles(seed: int) -> int:
    return (3, 1, 5)[seed % 3]  # the last is the thumbnail; a single tile has none


def _image(seed: int) -> tuple[Arguments, list[int]]:
    slots = 9 * _tiles(seed)
    return {"pixel_values": pixels(_tiles(seed), 3, 24, 24, seed=seed)}, [VISION_START, *[IMAGE] * slots, VISION_END]


FAMILIES = {
    "internvl": Family(
        "internvl",
        builder("InternVL", {**TOWER, "image_size": 24}, QWEN2, image_token_id=IMAGE, image_seq_length=9),
        Kind(_image, lambda seed: shuffled(_tiles(seed)), side=2), cls=True, lacks={"downsample": ONE_SIZE},
    )
}  # fmt: skip
