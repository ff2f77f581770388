"""What tiny models are built of: shared configurations, special token ids, and strong weights.

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
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LLAMA = {"model_type": "llama", **TEXT}
QWEN2 = {"model_type": "qwen2", **TEXT}
GEMMA = {**TEXT, "head_dim": 8}
SLIDING = {
    "sliding_window": WINDOW, "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}  # fmt: skip


def strengthen(model: Any, seed: int = 0) -> Any:
    """Random weights under which a mistake shows, and generation that writes no placeholder; returns the model."""
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
    """A function that builds a model in memory, given its attention implementation ("sdpa" by default).

    Args:
        name: of transformers' classes without their ending: "Llava" for LlavaConfig, LlavaForConditionalGeneration.
        vision: arguments of the vision tower's configuration.
        text: arguments of the language model's.
        options: the other arguments of the family's own configuration.
    """

    def build(attention: str = "sdpa") -> Any:
        config = getattr(transformers, f"{name}Config")(vision_config=dict(vision), text_config=dict(text), **options)
        config._attn_implementation = attention
        if text.get("model_type") == "gemma2":  # its capped attention scores exist in the eager path only
            config.text_config._attn_implementation = "eager"
        return strengthen(getattr(transformers, f"{name}ForConditionalGeneration")(config))

    return build


def clip(size: int) -> dict[str, Any]:
    """CLIP's tower for pictures of `size` x `size` pixels."""
    return {"model_type": "clip_vision_model", **TOWER, "image_size": size}


def siglip(size: int, **options: Any) -> dict[str, Any]:
    """SigLIP's, which has no CLS token."""
    return {"model_type": "siglip_vision_model", **TOWER, "image_size": size, **options}


def mrope(*section: int, **options: Any) -> dict[str, Any]:
    """M-RoPE: how many frequencies turn by time, by height and by width."""
    return {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section), **options}
    }


def pinpoints(side: int) -> list[list[int]]:
    """[height, width] of the canvases: two or three tiles in a row or column, or four."""
    return [[side * rows, side * cols] for rows, cols in ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))]
