"""Tiny models of every family, built from config in memory, with strong weights.

Default initialisation leaves attention nearly uniform, and most mask bugs would stay under any tolerance.
All towers have 4-pixel patches; ids from 80 on are placeholders and markers, which generation never makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

VOCABULARY = 96
PAD = 0
IMAGE, VIDEO, VISION_START, VISION_END = 90, 91, 92, 93
TILES = (80, 81, 82, 83)  # <row_1_col_1>, <row_1_col_2>, <row_2_col_1>, <row_2_col_2>
WHOLE_IMAGE, AROUND_IMAGE, LINE_BREAK, DOUBLE_BREAK, IMAGE_BEGIN, IMAGE_END = 84, 85, 86, 87, 88, 89
SUPPRESSED = list(range(80, VOCABULARY))  # a random model would generate placeholders
LAYERS = 4
PATCH = 4
WINDOW = 16  # of sliding layers, shorter than the prompts (PaliGemma sees its whole prefix: there it bites in decoding)

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4, "patch_size": PATCH,
}  # fmt: skip
QWEN_TOWER: dict[str, Any] = {
    "depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": PATCH,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3, "out_hidden_size": 32,
}  # fmt: skip
QWEN_IDS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def strengthen(model: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):  # around their neutral value, which is 1, or 0 (Gemma, Qwen3.5)
            parameter.data = parameter.data.mean().round() + 0.1 * noise
        elif "lambda_" in name:  # InternVL's layer scale
            parameter.data = 1 + 0.1 * noise
        else:
            parameter.data = 0.12 * noise
    model.generation_config.suppress_tokens = SUPPRESSED
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model.eval()


def builder(name: str, vision: dict[str, Any], text: dict[str, Any], **options: Any) -> Callable[..., Any]:
    """A function that builds the family `name` (transformers' class names without their ending)."""

    def build(attention: str = "sdpa") -> Any:
        config = getattr(transformers, f"{name}Config")(vision_config=dict(vision), text_config=dict(text), **options)
        config._attn_implementation = attention
        if text.get("model_type") == "gemma2":  # its capped attention scores exist in the eager path only
            config.text_config._attn_implementation = "eager"
        return strengthen(getattr(transformers, f"{name}ForConditionalGeneration")(config))

    return build


def _clip(size: int) -> dict[str, Any]:
    return {"model_type": "clip_vision_model", **TOWER, "image_size": size}


def _siglip(size: int, **options: Any) -> dict[str, Any]:
    return {"model_type": "siglip_vision_model", **TOWER, "image_size": size, **options}


def _mrope(*section: int, **options: Any) -> dict[str, Any]:
    return {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section), **options}
    }


def _pinpoints(side: int) -> list[list[int]]:
    """[height, width] of the canvases: two or three tiles in a row or column, or four."""
    return [[side * rows, side * cols] for rows, cols in ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))]


LLAMA = {"model_type": "llama", **TEXT}
QWEN2 = {"model_type": "qwen2", **TEXT}
GEMMA = {**TEXT, "head_dim": 8}
SLIDING = {
    "sliding_window": WINDOW, "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}  # fmt: skip
QWEN_TEXT = {**TEXT, "tie_word_embeddings": False}
QWEN3_TOWER = {**QWEN_TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
QWEN3_TEXT = {**TEXT, "head_dim": 8, **_mrope(2, 1, 1, mrope_interleaved=True)}
QWEN3_5_TOWER = {**QWEN_TOWER, "num_position_embeddings": 64}
QWEN3_5_TEXT = {
    **TEXT, "head_dim": 16, **_mrope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5),
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip

llava = builder("Llava", _clip(24), LLAMA, image_token_id=IMAGE)
# without a CLS token, and with the last layer's features
llava_siglip = builder(
    "Llava", _siglip(24), LLAMA, image_token_id=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full"
)
llava_next = builder("LlavaNext", _clip(16), LLAMA, image_token_id=IMAGE, image_grid_pinpoints=_pinpoints(16))
llava_onevision = builder(
    "LlavaOnevision", _siglip(20, vision_use_head=False), QWEN2, image_token_id=IMAGE, video_token_id=VIDEO,
    image_grid_pinpoints=_pinpoints(20), vision_aspect_ratio="anyres_max_2",
)  # fmt: skip
video_llava = builder("VideoLlava", _clip(16), LLAMA, image_token_index=IMAGE, video_token_index=VIDEO)
qwen2_vl = builder(
    "Qwen2VL", {**QWEN_TOWER, "embed_dim": 32, "mlp_ratio": 2}, {**QWEN_TEXT, **_mrope(1, 1, 2)}, **QWEN_IDS
)
qwen2_5_vl = builder(
    "Qwen2_5_VL", {**QWEN_TOWER, "window_size": 16, "fullatt_block_indexes": [1, 3]},
    {**QWEN_TEXT, **_mrope(1, 1, 2)}, **QWEN_IDS,
)  # fmt: skip
qwen3_vl = builder("Qwen3VL", QWEN3_TOWER, QWEN3_TEXT, **QWEN_IDS)
qwen3_vl_moe = builder("Qwen3VLMoe", QWEN3_TOWER, {**QWEN3_TEXT, **EXPERTS}, **QWEN_IDS)
qwen3_5 = builder("Qwen3_5", QWEN3_5_TOWER, QWEN3_5_TEXT, **QWEN_IDS)
qwen3_5_moe = builder(
    "Qwen3_5Moe", QWEN3_5_TOWER, {**QWEN3_5_TEXT, **EXPERTS, "shared_expert_intermediate_size": 24}, **QWEN_IDS
)
internvl = builder("InternVL", {**TOWER, "image_size": 24}, QWEN2, image_token_id=IMAGE, image_seq_length=9)
smolvlm = builder("SmolVLM", {**TOWER, "image_size": 24}, LLAMA, image_token_id=IMAGE)
idefics3 = builder("Idefics3", {**TOWER, "image_size": 24}, LLAMA, image_token_id=IMAGE)
gemma3 = builder(
    "Gemma3", _siglip(32, vision_use_head=False), {"model_type": "gemma3_text", **GEMMA, **SLIDING},
    image_token_index=IMAGE, boi_token_index=IMAGE_BEGIN, eoi_token_index=IMAGE_END, mm_tokens_per_image=16,
)  # fmt: skip
paligemma = builder(
    "PaliGemma", _siglip(24, vision_use_head=False), {"model_type": "gemma", **GEMMA}, image_token_index=IMAGE,
    projection_dim=32, hidden_size=32, vocab_size=VOCABULARY,
)  # fmt: skip
paligemma2 = builder(
    "PaliGemma", _siglip(24, vision_use_head=False), {"model_type": "gemma2", **GEMMA, **SLIDING},
    image_token_index=IMAGE, projection_dim=32, hidden_size=32, vocab_size=VOCABULARY,
)  # fmt: skip
