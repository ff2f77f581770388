"""Qwen3-VL with experts."""

from vlmprune.testing.families.qwen3_vl import DEEPSTACK_TOWER, INTERLEAVED_TEXT
from vlmprune.testing.family import Family
from vlmprune.testing.qwen import IDS, TYPES, image
from vlmprune.testing.weights import EXPERTS, builder

FAMILIES = {
    "qwen3_vl_moe": Family(
        "qwen3_vl_moe", builder("Qwen3VLMoe", DEEPSTACK_TOWER, {**INTERLEAVED_TEXT, **EXPERTS}, **IDS), image,
        types=TYPES,
    )
}  # fmt: skip
