"""Qwen3.5 with experts."""

from vlmprune.testing.families.qwen3_5 import PLAIN_TOWER, RECURRENT_LACKS, RECURRENT_TEXT
from vlmprune.testing.family import Family
from vlmprune.testing.qwen import IDS, TYPES, image
from vlmprune.testing.weights import EXPERTS, builder

_text = {**RECURRENT_TEXT, **EXPERTS, "shared_expert_intermediate_size": 24}
FAMILIES = {
    "qwen3_5_moe": Family(
        "qwen3_5_moe", builder("Qwen3_5Moe", PLAIN_TOWER, _text, **IDS), image, types=TYPES, recurrent=True,
        lacks=RECURRENT_LACKS,
    )
}  # fmt: skip
