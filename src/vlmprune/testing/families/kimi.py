"""Kimi K2.5: pictures as rows of patches, 2 x 2 of which make a slot; chunks of a video, pooled over their frames."""

from __future__ import annotations

from dataclasses import replace

import torch

from vlmprune.testing.family import Family
from vlmprune.testing.images import ODD, Arguments, Kind, blocks, pixels, text
from vlmprune.testing.weights import IMAGE, PATCH, TEXT, VIDEO, VISION_END, VISION_START, builder

FRAMES = 2  # of a chunk
SHAPES = [(8, 12), (12, 8), (10, 10)]  # of pictures, in patches
SMALL = [(4, 8), (6, 4), (8, 6)]  # of frames


def _kind(token: int, name: str, frames: int, shapes: list[tuple[int, int]]) -> Kind:
    """Pictures, or chunks of frames, each behind its time as text."""
    ending = "_videos" if name == "video" else ""

    def shape(seed: int) -> tuple[int, int]:
        return (2, 16) if seed == ODD else shapes[seed % 3]

    def one(seed: int) -> tuple[Arguments, list[int]]:
        rows, cols = shape(seed)
        values = frames * pixels(frames * rows * cols, 3, PATCH, PATCH, seed=seed)  # stronger than a frame's time
        grid = torch.tensor([[frames, rows, cols]])
        time = text(3, 1000 + seed) if name == "video" else []
        ids = [*time, VISION_START, *[token] * (rows * cols // 4), VISION_END]
        return {f"pixel_values{ending}": values, f"{name}_grid_thw": grid}, ids

    return Kind(one, lambda seed: blocks(*shape(seed), side=2), side=2, frames=frames)


# experts, and latent attention whose values are narrower than its keys
DECODER = {
    "model_type": "deepseek_v3", **TEXT, "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_images = Family(
    "kimi_k25",
    builder(
        "Kimi_K25",
        {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
            "patch_size": PATCH, "pos_emb_height": 8, "pos_emb_width": 8, "pos_emb_time": FRAMES,
        },
        DECODER, projection_hidden_size=32, image_token_id=IMAGE, video_token_id=VIDEO, tie_word_embeddings=False,
        vision_start_token_id=VISION_START, vision_end_token_id=VISION_END,
    ),
    _kind(IMAGE, "image", 1, SHAPES), since=(5, 24),
)  # fmt: skip
FAMILIES = {"kimi_k25": _images, "kimi_k25 video": replace(_images, kind=_kind(VIDEO, "video", FRAMES, SMALL))}
