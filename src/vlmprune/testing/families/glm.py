"""GLM-4.1V, 4.5V (experts), 4.6V and GLM-OCR: Qwen2-VL's pictures; frames with the image's id, the time after each."""

from __future__ import annotations

from dataclasses import replace

from vlmprune.testing import qwen
from vlmprune.testing.family import Family
from vlmprune.testing.images import Arguments, text
from vlmprune.testing.weights import (
    IMAGE,
    IMAGE_BEGIN,
    IMAGE_END,
    TEXT,
    VIDEO,
    VISION_END,
    VISION_START,
    builder,
    mrope,
)

IDS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": IMAGE_BEGIN,
    "image_end_token_id": IMAGE_END, "video_start_token_id": VISION_START, "video_end_token_id": VISION_END,
}  # fmt: skip
TOWER = {**qwen.TOWER, "image_size": 48, "num_heads": 2}  # with four of 8 numbers, attention is nearly uniform
# of a head's 16 numbers, 8 turn
HALF_TURNED = {
    **TEXT, "num_attention_heads": 2, "num_key_value_heads": 1, **mrope(1, 1, 2, partial_rotary_factor=0.5)
}  # fmt: skip
EXPERTS = {
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}  # fmt: skip
MIXED = {"sampling": "transformers mixes up the images of a prompt, and loses videos, when it repeats it for beams"}
FRAMES = ("mm_token_type_ids", (0, 2, 2))


def _video(seed: int) -> tuple[Arguments, list[int]]:
    """One video: its frames as images, with the second of each behind it."""
    arguments, ids = qwen.video(timestamps=True).image(seed)
    frames = int(arguments["video_grid_thw"][0, 0])
    slots = ids.count(VIDEO) // frames
    found = [VISION_START]
    for frame in range(frames):
        found += [IMAGE_BEGIN, *[IMAGE] * slots, IMAGE_END, *text(1 + frame % 2, 1000 + 10 * seed + frame)]
    return arguments, [*found, VISION_END]


_films = replace(qwen.video(), image=_video)


def _family(name: str, classes: str, decoder: dict[str, object], **vision: object) -> Family:
    build = builder(classes, {**TOWER, **vision}, decoder, **IDS)
    return Family(name, build, qwen.image, types=qwen.TYPES, lacks=MIXED)


_PICTURES = {
    "glm4v": _family("glm4v", "Glm4v", HALF_TURNED),
    "glm46v": _family("glm46v", "Glm46V", {"model_type": "glm4v_text", **HALF_TURNED}, model_type="glm4v_vision"),
    "glm4v_moe": _family("glm4v_moe", "Glm4vMoe", {**HALF_TURNED, **EXPERTS}),
    "glm_ocr": _family("glm_ocr", "GlmOcr", {**TEXT, "head_dim": 8, **mrope(1, 1, 2)}),
}  # fmt: skip
FAMILIES = {
    key: entry
    for name, family in _PICTURES.items()
    for key, entry in ((name, family), (f"{name} video", replace(family, kind=_films, types=FRAMES)))
}
