"""Aya Vision: tiles of 2 x 2 shuffled patches, a marker before each, the whole image last."""

from vlmprune.testing.family import ONE_SIZE, OWN_WINDOW, Family
from vlmprune.testing.images import tiled
from vlmprune.testing.weights import IMAGE, IMAGE_BEGIN, IMAGE_END, SLIDING, TEXT, TILES, WHOLE_IMAGE, builder, siglip


def _ids(tiles: int) -> list[int]:
    slots = [IMAGE] * 9
    marked = [token for marker in TILES[: tiles - 1] for token in (marker, *slots)]
    return [IMAGE_BEGIN, *marked, WHOLE_IMAGE, *slots, IMAGE_END]


FAMILIES = {
    "aya_vision": Family(
        "aya_vision",
        builder("AyaVision", siglip(24), {"model_type": "cohere2", **TEXT, **SLIDING}, image_token_index=IMAGE),
        tiled(_ids),
        lacks={"downsample": ONE_SIZE, "by hand": OWN_WINDOW},
    )
}
