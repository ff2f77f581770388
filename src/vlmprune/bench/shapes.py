"""Widths and depths of a model, from its configuration: what operations are counted from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from vlmprune.core.shape import Shape


def shape_of(config: Any) -> Shape | None:
    """The shape of a model from its transformers configuration; None where operations are not counted.

    That is so for a model type that no adapter is for, for those of `UNCOUNTED`, and for Gemma 4 where transformers
    does not say the heads of each layer in `per_layer_config`.
    """
    tower = TOWERS.get(config.model_type)
    if tower is None:
        return None
    text = config.get_text_config()
    own = _apart(text)
    if own is None:
        return None
    return Shape(
        family=config.model_type,
        **tower(config, config.vision_config, text.hidden_size),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        mlp=_mlp(text),
        vocabulary=text.vocab_size,
        **(own or _latent(text) or _usual(text)),
        **({} if own else _experts(text)),
        **_routed(text),
        **_all_experts(text),
        **(_recurrent(text) or _convolving(text)),
    )


def _mlp(text: Any) -> int:
    """Width of the MLP; LFM2 takes two thirds of what its configuration says, rounded up, where that asks for it."""
    width: int = getattr(text, "intermediate_size_mlp", getattr(text, "intermediate_size", 0))  # the former in Llama 4
    if not getattr(text, "block_auto_adjust_ff_dim", False):
        return width
    width = int(2 * width / 3)
    if text.block_ffn_dim_multiplier is None:
        return width
    step: int = text.block_multiple_of
    return -(-int(text.block_ffn_dim_multiplier * width) // step) * step


def _usual(text: Any) -> dict[str, Any]:
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return {"q_width": head * text.num_attention_heads, "kv_width": head * text.num_key_value_heads}


def _apart(text: Any) -> dict[str, Any] | None:
    """Of layers that differ in their heads, as Gemma 4's configuration describes them; None where it does not."""
    if not text.model_type.startswith("gemma4"):
        return {}
    if not hasattr(text, "per_layer_config"):
        return None
    depth, width, shared = text.num_hidden_layers, text.hidden_size, text.num_kv_shared_layers or 0
    own_input = getattr(text, "hidden_size_per_layer_input", 0) or 0
    experts = text.num_experts if getattr(text, "enable_moe_block", False) else 0
    chosen = text.top_k_experts * text.moe_intermediate_size if experts else 0
    layers, keys, passed = [], [], []
    for number, kind in enumerate(text.layer_types):
        heads, sharing = text.per_layer_config[number], number >= depth - shared
        q_width = heads.head_dim * text.num_attention_heads
        keys.append(heads.head_dim * heads.num_key_value_heads)
        made = 0 if sharing else 1 if text.attention_k_eq_v and kind == "full_attention" else 2
        mlp = text.intermediate_size * (2 if sharing and text.use_double_wide_mlp else 1)
        passed.append(mlp + chosen)
        others = 3 * width * passed[-1] + width * experts
        layers.append((width * (2 * q_width + made * keys[-1]), others + 2 * width * own_input, q_width))
    return {
        "q_width": max(layer[2] for layer in layers),
        "kv_width": max(keys),
        "apart": layers,
        "once": width * depth * own_input,
        "last_alone": shared if _computes_last_alone() else 0,
        "sparse": [number for number, mlp in enumerate(passed) if mlp != text.intermediate_size],
        "active": max(passed),
    }


def _computes_last_alone() -> bool:
    """Whether this transformers leaves all but the last token out of the layers that share keys; older ones do not."""
    from transformers import Gemma4TextModel

    return hasattr(Gemma4TextModel, "_maybe_slice_kv_shared_inputs")


def _latent(text: Any) -> dict[str, Any]:
    """Of attention that makes queries, keys and values from latents, as DeepSeek-V3's configuration describes it."""
    rank = getattr(text, "kv_lora_rank", None)
    if not rank:
        return {}
    heads, plain, turned = text.num_attention_heads, text.qk_nope_head_dim, text.qk_rope_head_dim
    q_width = heads * (plain + turned)
    queries = text.q_lora_rank * (text.hidden_size + q_width) if text.q_lora_rank else text.hidden_size * q_width
    keys = text.hidden_size * (rank + turned) + rank * heads * (plain + text.v_head_dim)
    values = heads * text.v_head_dim
    return {"q_width": q_width, "kv_width": q_width, "latent": queries + keys, "value_width": values}


def _experts(text: Any) -> dict[str, Any]:
    """Of a mixture of experts, as Qwen's configurations describe one."""
    experts = getattr(text, "num_experts", 0)
    if not experts:
        return {}
    step, dense = getattr(text, "decoder_sparse_step", 1), getattr(text, "mlp_only_layers", ())
    shared = getattr(text, "shared_expert_intermediate_size", 0)
    active = text.num_experts_per_tok * text.moe_intermediate_size + shared
    width = text.hidden_size
    return {
        "sparse": [n for n in range(text.num_hidden_layers) if n not in dense and (n + 1) % step == 0],
        "sparse_mlp": width * (experts + bool(shared)) + 3 * width * active,
        "active": active,
    }


def _routed(text: Any) -> dict[str, Any]:
    """Of a mixture of experts with dense layers below it, as GLM-4.5V's configuration describes one."""
    experts = getattr(text, "n_routed_experts", 0)
    if not experts:
        return {}
    active = (text.num_experts_per_tok + text.n_shared_experts) * text.moe_intermediate_size
    return {
        "sparse": list(range(text.first_k_dense_replace, text.num_hidden_layers)),
        "sparse_mlp": text.hidden_size * (experts + 3 * active),
        "active": active,
    }


def _all_experts(text: Any) -> dict[str, Any]:
    """Of a mixture of experts in which transformers lets every expert compute every token, as it does in Llama 4."""
    if text.model_type != "llama4_text":
        return {}
    experts, chosen = text.num_local_experts, text.num_experts_per_tok
    return {
        "sparse": list(text.moe_layers),
        "sparse_mlp": text.hidden_size * (experts + 3 * (experts + 1) * text.intermediate_size),
        "active": (chosen + 1) * text.intermediate_size,
    }


def _recurrent(text: Any) -> dict[str, Any]:
    """Of layers with linear attention, as Qwen3.5's configuration describes them."""
    layers = [n for n, kind in enumerate(getattr(text, "layer_types", None) or ()) if kind == "linear_attention"]
    if not layers:
        return {}
    heads, key, value = text.linear_num_value_heads, text.linear_key_head_dim, text.linear_value_head_dim
    mixed = 2 * text.linear_num_key_heads * key + heads * value
    projections = text.hidden_size * (mixed + 2 * heads * value + 2 * heads)
    return {
        "recurrent": layers,
        "recurrent_weights": projections + mixed * text.linear_conv_kernel_dim,
        "recurrent_heads": (heads, key, value),
        "gated_query": True,  # in the other layers
    }


def _convolving(text: Any) -> dict[str, Any]:
    """Of layers that convolve over a few tokens, each channel by itself, as LFM2's configuration describes them."""
    layers = [n for n, kind in enumerate(getattr(text, "layer_types", None) or ()) if kind == "conv"]
    width = text.hidden_size
    return {"recurrent": layers, "recurrent_weights": 4 * width**2 + width * text.conv_L_cache} if layers else {}


Tower = dict[str, Any]


def _side(size: int | list[int] | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]


def _vit(vision: Any, merge: int, projector: int, tile: int, cls: bool = False) -> Tower:
    """A CLIP or SigLIP tower, and others like them."""
    return {
        "encoder_layers": vision.num_hidden_layers,
        "encoder_width": vision.hidden_size,
        "encoder_mlp": vision.intermediate_size,
        "encoder_gated": False,
        "encoder_heads": vision.num_attention_heads,
        "has_cls": cls,
        "window": 0,
        "full_layers": vision.num_hidden_layers,
        "patch_inputs": 3 * _side(vision.patch_size) ** 2,
        "merge": merge,
        "projector": projector,
        "tile": tile,
    }


def _patches(vision: Any) -> int:
    """Of a picture of the tower's own size."""
    return (_side(vision.image_size) // _side(vision.patch_size)) ** 2


def _llava(config: Any, vision: Any, width: int) -> Tower:
    cls, gated = (vision.model_type == kind for kind in ("clip_vision_model", "pixtral"))
    tower = _vit(vision, merge=1, projector=vision.hidden_size * width + width**2, tile=0, cls=cls)
    return {**tower, "encoder_gated": gated}


def _anyres(config: Any, vision: Any, width: int) -> Tower:
    """LLaVA-NeXT and LLaVA-OneVision: the whole picture, then tiles of a canvas around it."""
    aspect, side = getattr(config, "vision_aspect_ratio", ""), _side(vision.image_size)
    return {
        **_llava(config, vision, width),
        "tile": _patches(vision),
        "canvases": sorted((height // side, width // side) for height, width in config.image_grid_pinpoints),
        "most": int(aspect.removeprefix("anyres_max_") or 0),
    }


def _next_video(config: Any, vision: Any, width: int) -> Tower:
    return {**_anyres(config, vision, width), "pooled": config.spatial_pool_stride**2}


def _video_llava(config: Any, vision: Any, width: int) -> Tower:
    return {**_llava(config, vision, width), "tile": _patches(vision), "cls_slots": True}


def _paligemma(config: Any, vision: Any, width: int) -> Tower:
    return _vit(vision, merge=1, projector=vision.hidden_size * width, tile=_patches(vision))


def _gemma3(config: Any, vision: Any, width: int) -> Tower:
    slots = config.mm_tokens_per_image
    return _vit(vision, merge=_patches(vision) // slots, projector=vision.hidden_size * width, tile=slots)


def _internvl(config: Any, vision: Any, width: int) -> Tower:
    merge = round(1 / config.downsample_ratio) ** 2
    projector = vision.hidden_size * merge * width + width**2
    return _vit(vision, merge=merge, projector=projector, tile=_patches(vision) // merge, cls=True)


def _idefics3(config: Any, vision: Any, width: int) -> Tower:
    merge = config.scale_factor**2
    projector = vision.hidden_size * merge * width
    return _vit(vision, merge=merge, projector=projector, tile=_patches(vision) // merge)


def _qwen(vision: Any, width: int, mlp: int, gated: bool, out: int, deepstack: int = 0) -> Tower:
    merge = vision.spatial_merge_size**2
    merged = width * merge
    return {
        "encoder_layers": vision.depth,
        "encoder_width": width,
        "encoder_mlp": mlp,
        "encoder_gated": gated,
        "encoder_heads": vision.num_heads,
        "has_cls": False,
        "window": 0,
        "full_layers": vision.depth,
        "patch_inputs": 3 * vision.temporal_patch_size * vision.patch_size**2,
        "merge": merge,
        "projector": (1 + deepstack) * (merged**2 + merged * out),
        "joins": vision.temporal_patch_size,
    }


def _qwen2_vl(config: Any, vision: Any, width: int) -> Tower:
    return _qwen(vision, vision.embed_dim, int(vision.embed_dim * vision.mlp_ratio), gated=False, out=width)


def _qwen2_5_vl(config: Any, vision: Any, width: int) -> Tower:
    tower = _qwen(vision, vision.hidden_size, vision.intermediate_size, gated=True, out=width)
    window = (vision.window_size // vision.patch_size) ** 2
    return {**tower, "window": window, "full_layers": len(vision.fullatt_block_indexes)}


def _qwen3_vl(config: Any, vision: Any, width: int) -> Tower:
    deepstack = len(getattr(vision, "deepstack_visual_indexes", ()))  # Qwen3.5 has none
    return _qwen(vision, vision.hidden_size, vision.intermediate_size, gated=False, out=width, deepstack=deepstack)


def _qwen2_5_omni(config: Any, vision: Any, width: int) -> Tower:
    return {**_qwen2_5_vl(config, vision, width), "all_logits": True}


def _qwen3_omni(config: Any, vision: Any, width: int) -> Tower:
    return {**_qwen3_vl(config, vision, width), "all_logits": True}


def _glm(config: Any, vision: Any, width: int) -> Tower:
    """The blocks' MLP is as wide as the merger's output, and the merger has a gated MLP of its own."""
    return _glm_merger(vision, mlp=vision.out_hidden_size, inside=vision.intermediate_size)


def _glm_ocr(config: Any, vision: Any, width: int) -> Tower:
    return _glm_merger(vision, mlp=vision.intermediate_size, inside=vision.out_hidden_size * vision.in_channels)


def _glm_merger(vision: Any, mlp: int, inside: int) -> Tower:
    out = vision.out_hidden_size
    tower = _qwen(vision, vision.hidden_size, mlp, gated=True, out=out)
    return {**tower, "projector": vision.spatial_merge_size**2 * vision.hidden_size * out + out**2 + 3 * out * inside}


def _paddleocr_vl(config: Any, vision: Any, width: int) -> Tower:
    merged = vision.hidden_size * vision.spatial_merge_size**2
    return _vit(vision, merge=vision.spatial_merge_size**2, projector=merged**2 + merged * width, tile=0)


def _mistral3(config: Any, vision: Any, width: int) -> Tower:
    merge = config.spatial_merge_size**2
    projector = merge * vision.hidden_size**2 + vision.hidden_size * width + width**2
    return {**_vit(vision, merge=merge, projector=projector, tile=0), "encoder_gated": True}


def _minicpm(config: Any, vision: Any, width: int) -> Tower:
    """A merger of 2 x 2 patches with an MLP and window attention inside the tower, and another one behind it."""
    d, merged = vision.hidden_size, 4 * vision.hidden_size
    plain = _vit(vision, merge=4, projector=merged**2 + merged * width, tile=0)
    plain |= {"all_logits": config.model_type == "minicpmv4_6"}
    if config.downsample_mode == "4x":
        return plain
    return {
        **plain,
        "merge": 16,
        "shrunk_layers": vision.num_hidden_layers - 1 - vision.insert_layer_id,
        # its attention's projections, logits and values within four patches, and the MLP for every fourth
        "midway": 4 * d**2 + 2 * 4 * d + vision.window_intermediate_size * (merged + d) // 4,
    }


def _kimi(config: Any, vision: Any, width: int) -> Tower:
    merge = math.prod(vision.merge_kernel_size)
    merged = merge * vision.hidden_size
    tower = _vit(vision, merge=merge, projector=merged**2 + merged * width, tile=0)
    return {**tower, "chunk": vision.pos_emb_time}


def _gemma4(config: Any, vision: Any, width: int) -> Tower:
    tower = _vit(vision, merge=vision.pooling_kernel_size**2, projector=vision.hidden_size * width, tile=0)
    return {**tower, "encoder_gated": True, "opaque": True}


def _lfm2_vl(config: Any, vision: Any, width: int) -> Tower:
    """Padded rows of patches; the projector takes the padding, too, which transformers 5.19 still leaves out."""
    merge, inside = config.downsample_factor**2, config.projector_hidden_size
    projector = merge * vision.hidden_size * inside + inside * width
    return {**_vit(vision, merge=merge, projector=projector, tile=0), "opaque": True, "projects_padding": True}


def _molmo2(config: Any, vision: Any, width: int) -> Tower:
    """Crops that overlap by a margin. A slot of a picture asks the four patches behind it by attention.

    In the released models nine stand behind a slot of a video, which no configuration says: this is for pictures.
    """
    pool, patches = config.adapter_config, 4
    states = pool.hidden_size * len(pool.vision_feature_layer)
    queries, keys = (pool.head_dim * heads for heads in (pool.num_attention_heads, pool.num_key_value_heads))
    asked = states * queries + patches * 2 * (states * keys + queries) + queries * pool.hidden_size
    projector = asked + pool.intermediate_size * (2 * pool.hidden_size + width)
    return {**_vit(vision, merge=patches, projector=projector, tile=0), "opaque": True}


def _gemma4_unified(config: Any, vision: Any, width: int) -> Tower:
    """No encoder: a projection of patches, padding too, and one of what it makes of them."""
    return {
        **dict.fromkeys(("encoder_layers", "encoder_mlp", "encoder_heads", "window", "full_layers"), 0),
        "encoder_width": vision.mm_embed_dim,
        "encoder_gated": False,
        "has_cls": False,
        "patch_inputs": 3 * vision.model_patch_size**2,
        "merge": 1,
        "projector": vision.mm_embed_dim * width,
        "opaque": True,
        "projects_padding": True,
    }


def _cohere(config: Any, vision: Any, width: int) -> Tower:
    """The projector is a gated MLP: its first weights make values and gates."""
    merge, inside = config.downsample_factor**2, getattr(config, "alignment_intermediate_size", width)
    projector = merge * vision.hidden_size * inside + inside // 2 * width
    return _vit(vision, merge=merge, projector=projector, tile=_patches(vision) // merge)


def _ovis2(config: Any, vision: Any, width: int) -> Tower:
    """A slot is a mix of all words of a vocabulary of the tower's own."""
    merge, words = vision.hidden_stride**2, vision.vocab_size - vision.num_visual_indicator_tokens
    projector = merge * vision.hidden_size * words + vision.vocab_size * width
    tower = _vit(vision, merge=merge, projector=projector, tile=_patches(vision) // merge)
    return {**tower, "encoder_gated": True}


def _llama4(config: Any, vision: Any, width: int) -> Tower:
    """An MLP shuffles patches into slots at the end of the tower; its first matrix reads those of a slot."""
    merge, out = round(1 / vision.pixel_shuffle_ratio) ** 2, vision.projector_output_dim
    mlp = vision.intermediate_size * vision.projector_input_dim + out**2
    projector = mlp + vision.vision_output_dim * width
    return _vit(vision, merge=merge, projector=projector, tile=_patches(vision) // merge, cls=True)


TOWERS: dict[str, Callable[[Any, Any, int], Tower]] = {
    "llava": _llava,
    "paligemma": _paligemma,
    "gemma3": _gemma3,
    "internvl": _internvl,
    "smolvlm": _idefics3,
    "idefics3": _idefics3,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl,
    "qwen3_5": _qwen3_vl,
    "qwen3_5_moe": _qwen3_vl,
    "llava_next": _anyres,
    "llava_onevision": _anyres,
    "llava_next_video": _next_video,
    "video_llava": _video_llava,
    "mistral3": _mistral3,
    "paddleocr_vl": _paddleocr_vl,
    "glm4v": _glm,
    "glm46v": _glm,
    "glm4v_moe": _glm,
    "glm_ocr": _glm_ocr,
    "aya_vision": _cohere,
    "cohere2_vision": _cohere,
    "ovis2": _ovis2,
    "llama4": _llama4,
    "qwen2_5_omni_thinker": _qwen2_5_omni,
    "qwen3_omni_moe_thinker": _qwen3_omni,
    "minicpmv4_6": _minicpm,
    "minicpmv4_7": _minicpm,
    "kimi_k25": _kimi,
    "gemma4": _gemma4,
    "gemma4_unified": _gemma4_unified,
    "lfm2_vl": _lfm2_vl,
    "molmo2": _molmo2,
}
# Families with an adapter whose operations the formula (`bench.flops`) does not describe: tables show a dash.
UNCOUNTED: dict[str, str] = {}
