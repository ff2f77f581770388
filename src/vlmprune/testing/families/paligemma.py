"""PaliGemma and PaliGemma 2: the whole prompt is a prefix that sees itself in both directions."""

from dataclasses import replace
from typing import Any

from vlmprune.testing.family import OWN_MASK, Family
from vlmprune.testing.images import whole
from vlmprune.testing.weights import GEMMA, IMAGE, SLIDING, VOCABULARY, builder, siglip


def _builder(**text: Any) -> Any:
    return builder(
        "PaliGemma", siglip(24, vision_use_head=False), {**text, **GEMMA}, image_token_index=IMAGE,
        projection_dim=32, hidden_size=32, vocab_size=VOCABULARY,
    )  # fmt: skip


_first = Family(
    "paligemma", _builder(model_type="gemma"), whole(24), types=("token_type_ids", (0, 0, 0)), tower_rows=True,
    first_position=1,
    lacks={
        "by hand": OWN_MASK,
        "new image": (
            "in transformers the new image sees itself in one direction or in both, depending on who encoded it"
        ),
    },
)  # fmt: skip
FAMILIES = {
    "paligemma": _first,
    "paligemma2": replace(
        _first,
        build=_builder(model_type="gemma2", **SLIDING),
        lacks={**_first.lacks, "static cache": "transformers' own PaliGemma 2 cannot run with a static cache"},
    ),
}
