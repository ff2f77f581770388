"""LLaVA-NeXT: the whole image, then tiles put together, a newline slot after each row of them."""

from vlmprune.testing.anyres import NEXT, anyres
from vlmprune.testing.family import OUTSIDE, Family
from vlmprune.testing.weights import IMAGE, LLAMA, builder, clip, pinpoints

FAMILIES = {
    "llava_next": Family(
        "llava_next",
        builder("LlavaNext", clip(16), LLAMA, image_token_id=IMAGE, image_grid_pinpoints=pinpoints(16)),
        anyres(NEXT, 4), cls=True, used=-2, tower_rows=True, lacks={"downsample": OUTSIDE},
    )
}  # fmt: skip
