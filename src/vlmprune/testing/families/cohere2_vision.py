"""Cohere 2 Vision: tiles of 2 x 2 shuffled patches, a line break behind each, the whole image last."""

from vlmprune.testing.family import ONE_SIZE, OWN_WINDOW, Family
from vlmprune.testing.images import tiled
from vlmprune.testing.weights import IMAGE, IMAGE_BEGIN, IMAGE_END, LINE_BREAK, SLIDING, TEXT, builder, siglip

FAMILIES = {
    "cohere2_vision": Family(
        "cohere2_vision",
        builder(
            "Cohere2Vision", siglip(24), {"model_type": "cohere2", **TEXT, **SLIDING}, image_token_id=IMAGE,
            alignment_intermediate_size=40,
        ),
        tiled(lambda tiles: [IMAGE_BEGIN, *[*[IMAGE] * 9, LINE_BREAK] * tiles, IMAGE_END]),
        lacks={"downsample": ONE_SIZE, "by hand": OWN_WINDOW},
    )
}  # fmt: skip
