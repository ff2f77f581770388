"""Gemma 4 unified: no encoder, a slot for each patch; which layers let an image see itself depends on the cache."""

from __future__ import annotations

from dataclasses import replace

from vlmprune.testing.families.gemma4 import IDS, KINDS, NOT_RESIZED, films, pictures
from vlmprune.testing.family import OWN_MASK, Family
from vlmprune.testing.weights import PATCH, TEXT, WINDOW, builder

# Like 12B: keys that are values in full layers, images that see themselves
_build = builder(
    "Gemma4Unified",
    {
        "model_type": "gemma4_unified_vision", "patch_size": PATCH // 2, "pooling_kernel_size": 2, "mm_embed_dim": 40,
        "output_proj_dims": 40, "mm_posemb_size": 16,
    },
    {
        "model_type": "gemma4_unified_text", **TEXT, "head_dim": 8, "global_head_dim": 16, "sliding_window": WINDOW,
        "layer_types": KINDS * 2, "use_bidirectional_attention": "vision", "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
    },
    **IDS,
)  # fmt: skip
_images = Family(
    "gemma4_unified", _build, pictures([(4, 6), (6, 4), (3, 5)], (1, 9), side=1),
    types=("mm_token_type_ids", (0, 1, 2)),
    lacks={
        "encoder": "it has no encoder",
        "by hand": OWN_MASK,
        "downsample": NOT_RESIZED,
        "static cache": "with a static cache, transformers lets images see themselves in other layers",
    },
)  # fmt: skip
FAMILIES = {
    "gemma4_unified": _images,
    "gemma4_unified video": replace(  # 5.19 hands a plain forward no numbers of frames
        _images, kind=films([(2, 2, 5), (3, 4, 2), (2, 3, 4)], (1, 1, 8), side=1), since=(5, 24)
    ),
}
