"""Mistral 3: pictures of any size in one batch, 2 x 2 patches a slot, a line break behind each row of slots."""

from dataclasses import replace

from vlmprune.testing import pixtral
from vlmprune.testing.family import Family
from vlmprune.testing.weights import IMAGE, TEXT, builder

_first = Family(
    "mistral3",
    builder(
        "Mistral3", pixtral.TOWER, {"model_type": "mistral", **TEXT, "head_dim": 8, "sliding_window": None},
        image_token_index=IMAGE,
    ),
    pixtral.pictures(2),
)  # fmt: skip
# attention that scales its queries by their position ids, here from the eighth on
MINISTRAL = {
    "model_type": "ministral3", **TEXT, "head_dim": 8, "sliding_window": None,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 8,
    },
}  # fmt: skip
FAMILIES = {
    "mistral3": _first,
    "mistral3 with Ministral": replace(
        _first, build=builder("Mistral3", pixtral.TOWER, MINISTRAL, image_token_index=IMAGE)
    ),
}
