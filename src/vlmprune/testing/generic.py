"""Tiny models of families that have no adapter of their own: some follow the usual layout, some do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vlmprune.testing import qwen
from vlmprune.testing.anyres import NEXT, anyres
from vlmprune.testing.family import Family
from vlmprune.testing.images import Arguments, Kind, pixels, whole
from vlmprune.testing.weights import (
    AROUND_IMAGE,
    IMAGE,
    LLAMA,
    PATCH,
    QWEN2,
    TEXT,
    TOWER,
    VIDEO,
    VOCABULARY,
    builder,
    pinpoints,
)

SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2}
PIXTRAL = {"model_type": "pixtral", **TOWER, "image_size": 32, "head_dim": 8}
CLIP = {"model_type": "clip_vision_model", **TOWER}
SIGLIP = {"model_type": "siglip_vision_model", **TOWER, "image_size": 24, "vision_use_head": False}
COHERE = {"model_type": "cohere2", **TEXT, "head_dim": 8, **SLIDING}
# attention that scales its queries by their position ids, from the eighth on
MINISTRAL = {
    "model_type": "ministral3", **TEXT, "head_dim": 8, "sliding_window": None,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 8,
    },
}  # fmt: skip
MISTRAL = {"model_type": "mistral", **TEXT, "head_dim": 8, "sliding_window": 16}  # in all layers, without layer_types
ROPE_3D = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
GLM_IDS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": 92, "image_end_token_id": 93,
    "video_start_token_id": 94, "video_end_token_id": 95,
}  # fmt: skip
LFM = {
    "model_type": "lfm2", **TEXT, "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False,
    "conv_L_cache": 3,
}  # fmt: skip
GEMMA4_TOWER = {
    "model_type": "gemma4_vision", **TOWER, "num_key_value_heads": 4, "head_dim": 8, "pooling_kernel_size": 2,
    "position_embedding_size": 64,
}  # fmt: skip
# two rotary embeddings, by layer; features are added to the placeholder's embedding
MOLMO_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "hidden_size": 32}
MOLMO = builder(
    "Molmo2",
    {**MOLMO_HEADS, "intermediate_size": 48, "num_hidden_layers": 3, "image_size": [24, 24], "patch_size": 4},
    {
        "model_type": "molmo2_text", **TEXT, "head_dim": 8, "additional_vocab_size": 0, "rope_scaling_layers": [1, 3],
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    },
    adapter_config={
        **MOLMO_HEADS, "intermediate_size": 48, "text_hidden_size": 32, "vision_feature_layer": [2, 1],
    },
    image_patch_id=IMAGE, image_start_token_id=92, low_res_image_start_token_id=92, image_end_token_id=93,
    frame_start_token_id=94, frame_end_token_id=95,
)  # fmt: skip


def gemma4(**text: Any) -> Callable[..., Any]:
    decoder = {
        "model_type": "gemma4_text", **TEXT, "head_dim": 8, "global_head_dim": 8, **SLIDING,
        "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0,
        **text,
    }  # fmt: skip
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": 95, "audio_config": None}
    return builder("Gemma4", GEMMA4_TOWER, decoder, **ids)


def _kind(image: Callable[[int], tuple[Arguments, list[int]]]) -> Kind:
    return Kind(image, lambda seed: [])  # which patches stand behind a slot is not known, that is the point


def fixed(side: int, slots: int) -> Kind:
    """Square pictures of one size and number of slots."""
    return _kind(lambda seed: ({"pixel_values": pixels(1, 3, side, side, seed=seed)}, [IMAGE] * slots))


def _of_sample(seed: int) -> tuple[Arguments, list[int]]:
    """One picture of those of a sample, wide or high, of which a resampler makes five slots."""
    mask = torch.ones(1, 1, 24, 24, dtype=torch.long)
    (mask[..., 16:] if seed % 2 else mask[..., 16:, :]).zero_()
    values = pixels(1, 1, 3, 24, 24, seed=seed) * mask[:, :, None]
    return {"pixel_values": values, "pixel_attention_mask": mask}, [AROUND_IMAGE, *[IMAGE] * 5, AROUND_IMAGE]


def _pixtral(seed: int) -> tuple[Arguments, list[int]]:
    """Six merged slots a picture; all pictures go through the tower in one row."""
    return {"pixel_values": pixels(1, 3, 16, 24, seed=seed), "image_sizes": torch.tensor([[16, 24]])}, [IMAGE] * 6


def _next_video(seed: int) -> tuple[Arguments, list[int]]:
    return {"pixel_values_videos": pixels(1, 3, 3, 16, 16, seed=seed)}, [VIDEO] * 12


def _naflex(seed: int) -> tuple[Arguments, list[int]]:
    """Patches in a padded row."""
    rows, cols = [(4, 6), (6, 4), (4, 4)][seed % 3]
    mask = (torch.arange(24) < rows * cols).long()[None]
    arguments = {"pixel_values": pixels(1, 24, 48, seed=seed), "pixel_attention_mask": mask}
    return {**arguments, "spatial_shapes": torch.tensor([[rows, cols]])}, [IMAGE] * (rows * cols // 4)


def _gemma4_image(seed: int) -> tuple[Arguments, list[int]]:
    places = torch.cartesian_prod(torch.arange(4), torch.arange(6)).flip(1)[None]
    return {"pixel_values": pixels(1, 24, 48, seed=seed), "image_position_ids": places}, [IMAGE] * 6


def _molmo_image(seed: int) -> tuple[Arguments, list[int]]:
    """One crop of 6 x 6 patches, 2 x 2 of which are pooled into a token."""
    patches = torch.arange(36).view(3, 2, 3, 2).transpose(1, 2).reshape(9, 4)
    arguments = {"pixel_values": pixels(1, 36, 48, seed=seed), "image_token_pooling": patches}
    return {**arguments, "image_grids": torch.tensor([[3, 3, 0, 0]])}, [92, *[IMAGE] * 9, 93]


def _molmo_batch(inputs: Arguments) -> Arguments:
    """Patches are numbered through all crops."""
    numbers = torch.arange(len(inputs["image_grids"])).repeat_interleave(9)
    return {**inputs, "image_token_pooling": inputs["image_token_pooling"] + 36 * numbers[:, None]}


def _video_llama(seed: int) -> tuple[Arguments, list[int]]:
    arguments, ids = qwen.image.image(seed)
    flat = arguments["pixel_values"][:, : 3 * PATCH**2]  # one frame a patch
    return {**arguments, "pixel_values": flat, "image_merge_sizes": torch.tensor([2])}, ids


NEXT_VIDEO = builder(
    "LlavaNextVideo", {**CLIP, "image_size": 16}, LLAMA, image_token_index=IMAGE, video_token_index=VIDEO,
    image_grid_pinpoints=pinpoints(16),
)  # fmt: skip
GLM = builder(
    "Glm4v",
    {**qwen.TOWER, "image_size": 48, "rms_norm_eps": 1e-5},
    {"model_type": "glm4v_text", **TEXT, "head_dim": 8, **ROPE_3D}, **GLM_IDS,
)  # fmt: skip
_SAM = {
    "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 4, "window_size": 3, "global_attn_indexes": [1], "mlp_dim": 48,
}  # fmt: skip
_got = builder("GotOcr2", _SAM, QWEN2, image_token_index=IMAGE)

USUAL = {
    "mistral3": Family("mistral3", builder("Mistral3", PIXTRAL, MISTRAL, image_token_index=IMAGE), _kind(_pixtral)),
    "mistral3 with Ministral": Family(
        "mistral3", builder("Mistral3", PIXTRAL, MINISTRAL, image_token_index=IMAGE), _kind(_pixtral)
    ),
    "aya_vision": Family(
        "aya_vision", builder("AyaVision", SIGLIP, COHERE, image_token_index=IMAGE, downsample_factor=2), fixed(24, 9)
    ),
    "ovis2": Family(
        "ovis2",
        builder(
            "Ovis2",
            {**TOWER, "image_size": 24, "vocab_size": 40, "num_visual_indicator_tokens": 5, "hidden_stride": 2},
            QWEN2, image_token_id=IMAGE, visual_indicator_token_ids=[84, 85, 86, 87, 88], hidden_size=32,
            vocab_size=VOCABULARY,
        ),
        whole(24, 2, (84,), (88,)),
    ),
    "llava_next_video": Family("llava_next_video", NEXT_VIDEO, anyres(NEXT, 4)),
    "llava_next_video video": Family("llava_next_video", NEXT_VIDEO, _kind(_next_video)),
    "vipllava": Family(
        "vipllava",
        builder("VipLlava", {**CLIP, "image_size": 24}, LLAMA, image_token_index=IMAGE, vision_feature_layer=-2),
        fixed(24, 36),
    ),
    "deepseek_vl": Family("deepseek_vl", builder("DeepseekVL", SIGLIP, LLAMA, image_token_id=IMAGE), fixed(24, 36)),
    "glm4v": Family("glm4v", GLM, qwen.image, types=qwen.TYPES),
    "lfm2_vl": Family(
        "lfm2_vl",
        builder(
            "Lfm2Vl", {"model_type": "siglip2_vision_model", **TOWER, "num_patches": 64, "vision_use_head": False}, LFM,
            image_token_id=IMAGE, projector_hidden_size=40,
        ),
        _kind(_naflex),
    ),
    "video_llama_3": Family(
        "video_llama_3",
        builder(
            "VideoLlama3", {"model_type": "video_llama_3_vision", **TOWER}, QWEN2, image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        _kind(_video_llama),
    ),
    "aria": Family(
        "aria",
        builder(
            "Aria", {"model_type": "idefics3_vision", **TOWER, "image_size": 24},
            {"model_type": "aria_text", **TEXT, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
            image_token_index=IMAGE, projector_patch_to_query_dict={36: 8},
        ),
        fixed(24, 8),
    ),
    "idefics2": Family(
        "idefics2",
        builder(
            "Idefics2", {**TOWER, "image_size": 24}, LLAMA, image_token_id=IMAGE,
            perceiver_config={
                "hidden_size": 32, "resampler_n_latents": 5, "resampler_depth": 1, "resampler_n_heads": 4,
                "resampler_head_dim": 8, "num_key_value_heads": 2,
            },
        ),
        _kind(_of_sample), by_sample=True,
    ),
    "got_ocr2": Family("got_ocr2", lambda attention="eager": _got("eager"), fixed(32, 4)),
    "gemma4": Family("gemma4", gemma4(), _kind(_gemma4_image), types=qwen.TYPES),
    "molmo2": Family("molmo2", MOLMO, _kind(_molmo_image), joined=_molmo_batch),
}  # fmt: skip
VIP_MANY = Family(
    "vipllava",
    builder("VipLlava", {**CLIP, "image_size": 24}, LLAMA, image_token_index=IMAGE, vision_feature_layer=[-2, -3, 1]),
    fixed(24, 36),
)
