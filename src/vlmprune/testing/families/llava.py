"""LLaVA-1.5: one picture, one slot a patch; with CLIP's tower and with SigLIP's. Pixtral-12B, of any size, in rows."""

from vlmprune.testing import pixtral
from vlmprune.testing.family import Family
from vlmprune.testing.images import whole
from vlmprune.testing.weights import IMAGE, LLAMA, TEXT, builder, clip, siglip

_siglip = builder(
    "Llava", siglip(24), LLAMA, image_token_id=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full"
)
_pixtral = builder(
    "Llava", pixtral.TOWER, {"model_type": "mistral", **TEXT, "head_dim": 8, "sliding_window": None},
    image_token_id=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full",
)  # fmt: skip
FAMILIES = {
    "llava": Family(
        "llava", builder("Llava", clip(24), LLAMA, image_token_id=IMAGE), whole(24), cls=True, used=-2, tower_rows=True
    ),
    # without a CLS token, and with the last layer's features
    "llava with SigLIP": Family("llava", _siglip, whole(24), tower_rows=True),
    "llava with Pixtral": Family("llava", _pixtral, pixtral.pictures(1), tower_rows=True),
}
