"""A tiny model of any image-text type of transformers, made from the family's own configuration class.

The configuration's own defaults say which parts a family has. Here each number in them that says how large a part is
becomes small, and lists with an entry per layer become as short as the tiny decoder, with every kind of layer in them.
What comes out need not run: the survey (`vlmprune.doctor.survey`) says of each type whether it did.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING

from vlmprune.models.surveyed import image_text_types
from vlmprune.testing.weights import IMAGE, LAYERS, PAD, PATCH, VIDEO, VOCABULARY, WINDOW, strengthen

TOWER_LAYERS = 3
WIDTH, HEADS, HEAD = 32, 4, 8
SIDE = 24  # pixels of a picture, in patches of PATCH
LEFT_OUT = ("per_layer_config", "id2label", "label2id", "transformers_version", "dtype")
IDS = {
    "pad": PAD, "bos": 1, "eos": 2, "image": IMAGE, "image_patch": IMAGE, "video": VIDEO, "audio": 95,
    "vision_start": 92, "vision_end": 93, "image_start": 92, "image_end": 93, "boi": 92, "eoi": 93, "user": 5,
}  # fmt: skip

# The first pattern that the whole name of a number matches says what it becomes; other numbers stay.
SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size(_per_layer_input)?", VOCABULARY),
    (r"additional_vocab_size", 0),
    (r"moe_.*intermediate_size|shared_expert.*(size|dim)|share_expert_dim|expert_ffn_hidden_size", 24),
    (r".*intermediate_size(_mlp)?|.*ffn_dim|mlp_dim|merged_hidden_size|projector_input_dim|projector_output_dim", 48),
    (r"hidden_size_per_layer_input", 8),
    (r"(.*_)?hidden_size|d_model|embed_dim|.*output_dim|projection_dim|image_token_embed_dim|out_dim", WIDTH),
    (r"global_head_dim|head_dim|.*_head_dim|qk_head_dim|query_pre_attn_scalar|rotary_dim", HEAD),
    (r"resampler_n_heads|(num|encoder|decoder|num_sliding)_(attention_)?heads|linear_num_heads", HEADS),
    (r"index_n_heads", 16),  # with few of them, many keys score zero, and which of these are chosen is chance
    (r"num_(key_value|global_key_value)_heads|linear_num_key_heads|sliding_num_key_value_heads", 2),
    (r"linear_num_value_heads", 4),
    (r"kv_lora_rank|q_lora_rank|output_channels", 16),
    (r"num_hidden_layers", LAYERS),
    (r"depth|num_layers|encoder_layers|decoder_layers|resampler_depth|num_residual_layers", TOWER_LAYERS),
    (r"insert_layer_id|first_k_dense_replace|n_shared_experts|moe_num_shared_experts|moe_layer_start_index", 1),
    (r"(moe_|n_routed_|num_local_|num_)(num_)?experts", 4),
    (r"num_experts_per_tok|moe_topk|moe_k|moe_top_k|top_k_experts", 2),
    (r"n_group|topk_group|num_nextn_predict_layers|pretraining_tp", 1),
    (r"image_size|max_image_size|resolution", SIDE),
    (r"patch_size", PATCH),
    (r"sliding_window|attention_chunk_size", WINDOW),
    (r"index_topk|index_kpool|index_block_size", 8),
    (r"index_topk_blocks", 2),
    (r"num_patches|num_position_embeddings", 64),
    (r"pos_emb_(height|width)", 8),
    (r"max_position_embeddings|max_source_positions", 512),
    (r"position_embedding_size", 64),
    (r"resampler_n_latents", 4),
    (r"window_size", 16),
    (r"num_mel_bins", 16),
    (r"downsample_hidden_size|conv_output_size", 16),
    (r"n_window(_infer)?", 8),
)  # fmt: skip

ROPE = {"rope_type": "default", "rope_theta": 1e4}
_GLM = {"text_config.rope_parameters": {**ROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}}
_THINKER = {"vision_start_token_id": 92, "vision_end_token_id": 93, "audio_start_token_id": 94}
_QWEN4 = {
    "ple_layer_ids": [1, 3], "ple_embed_dim": WIDTH, "number_of_conv_states": 3, "eos_token_id": 2,
    "heads_per_ngram": 2, "ngram_vocab_size_base": 50, "split_ngram_parts": 2, "hc_lowrank": 8, "head_dim": 16,
    "indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": HEAD, "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "rope_parameters": {**ROPE, "mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.5},
}  # fmt: skip
# By model_type, what released checkpoints have and the defaults do not, by its place in the configuration.
UNSAID: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("glm4v", "glm46v", "glm4v_moe", "glm_ocr", "glmga"), _GLM),
    "paddleocr_vl": {"text_config.rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]}},
    "qwen2_5_omni_thinker": {**_THINKER, "text_config.rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]}},
    "qwen3_omni_moe_thinker": _THINKER,
    "step3p7": {"text_config.sliding_window": WINDOW},
    "hunyuan_vl": {
        "text_config.head_dim": HEAD,
        "text_config.rope_parameters": {**ROPE, "mrope_section": [1, 1, 1, 1]},
    },
    "shieldgemma2": {"mm_tokens_per_image": 9},
    "dots3_note": {
        "text_config.num_key_value_heads": HEADS,
        "vision_config.adapter_in_dim": WIDTH,
        "vision_config.adapter_out_dim": WIDTH,
        "audio_config.adapter_input_size": WIDTH,
        "audio_config.adapter_out_dim": WIDTH,
    },
    "glm5_next": {"text_config.num_key_value_heads": HEADS, "text_config.qk_rope_head_dim": 0},
    "qwen4_exp": {f"text_config.{name}": value for name, value in _QWEN4.items()},
    "cohere_compass": {"text_config.rope_parameters": {"full_attention": ROPE}},
    "mistral_large4": {"text_config.num_key_value_heads": HEADS},
}


def shrunk(model_type: str) -> Any:
    """The configuration of a tiny model of an image-text type; whatever its class raises where there is none."""
    kind = CONFIG_MAPPING[model_type]
    values = _small(kind().to_dict())
    for path, value in UNSAID.get(model_type, {}).items():
        *parts, name = path.split(".")
        inside = values
        for part in parts:
            inside = inside.setdefault(part, {})
        inside[name] = value
    return kind.from_dict(values)


def build(model_type: str) -> Any:
    """That model in memory, with strong random weights and SDPA, or eager attention where it has no other."""
    made: Any = getattr(transformers, image_text_types()[model_type])
    config = shrunk(model_type)
    config._attn_implementation = "sdpa" if getattr(made, "_supports_sdpa", False) else "eager"
    return strengthen(made(config))


def on_meta(model_type: str) -> Any:
    """The model of the family's own defaults, whole but without weights."""
    with torch.device("meta"):
        return getattr(transformers, image_text_types()[model_type])(CONFIG_MAPPING[model_type]())


def _small(values: Mapping[str, Any]) -> dict[str, Any]:
    layers = values.get("num_hidden_layers") or values.get("depth")
    return {name: _changed(str(name), value, layers) for name, value in values.items() if name not in LEFT_OUT}


def _changed(name: str, value: Any, layers: int | None) -> Any:
    if isinstance(value, dict):
        return _small(value)
    known = re.fullmatch(r"(.*)_token_(id|index)", name)
    if known and (value is not None or known[1] in ("image", "video")):
        return IDS.get(known[1], 94)
    if name == "mrope_section":
        return [1] * (len(value) - 1) + [HEAD // 2 + 1 - len(value)]
    if isinstance(value, list):
        return _short(name, value, layers)
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), value)


def _short(name: str, value: list[Any], layers: int | None) -> list[Any]:
    if layers and len(value) == layers:
        kinds = list(dict.fromkeys(map(str, value)))
        first = [next(one for one in value if str(one) == kind) for kind in kinds]
        return [first[number % len(first)] for number in range(LAYERS)]
    if re.search(r"_(indexes|indices|idxs|layers)$", name) and all(isinstance(one, int) for one in value):
        return list(range(min(len(value), TOWER_LAYERS - 1)))
    return value
