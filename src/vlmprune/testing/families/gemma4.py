"""Gemma 4: pictures of any size in padded rows of patches, 2 x 2 of which make a slot; videos with timestamps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from vlmprune.testing.family import OWN_MASK, Family
from vlmprune.testing.images import ODD, Arguments, Kind, Slots, blocks, pixels, text
from vlmprune.testing.weights import (
    IMAGE,
    IMAGE_BEGIN,
    IMAGE_END,
    LAYERS,
    PATCH,
    TEXT,
    TOWER,
    VIDEO,
    VOCABULARY,
    WINDOW,
    builder,
)

ROOM = 96  # patches of a padded row
NOT_RESIZED = "vlmprune does not resize pictures in rows of patches with places"
OWN_LAYERS = "the text model alone makes its inputs per layer from token ids, which merged tokens do not have"
SHAPES = [(8, 12), (12, 8), (4, 8)]  # of pictures, in patches
FRAMES = [(2, 4, 8), (3, 6, 4), (2, 8, 6)]  # of videos

DECODER = {
    "model_type": "gemma4_text", **TEXT, "head_dim": 8, "global_head_dim": 16, "sliding_window": WINDOW,
    "vocab_size_per_layer_input": VOCABULARY,
}  # fmt: skip
KINDS = ["sliding_attention", "full_attention"]
VISION = {
    "model_type": "gemma4_vision", **TOWER, "num_hidden_layers": 3, "num_key_value_heads": 4, "head_dim": 8,
    "pooling_kernel_size": 2,
    "position_embedding_size": 64, "standardize": True,
}  # fmt: skip
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": 95, "audio_config": None}


def _rows(frames: int, rows: int, cols: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches [frames, ROOM, 48] in [0, 1] and their places [frames, ROOM, 2], both padded."""
    places = torch.full((frames, ROOM, 2), -1)
    places[:, : rows * cols] = torch.cartesian_prod(torch.arange(rows), torch.arange(cols)).flip(1)
    values = pixels(frames, ROOM, 3 * PATCH**2, seed=seed).sigmoid()
    return values.masked_fill((places < 0).all(-1, keepdim=True), 0), places


def pictures(shapes: Sequence[tuple[int, int]], odd: tuple[int, int], side: int) -> Kind:
    """Images of these rows and columns of patches by turns, a slot for each `side` x `side` of them."""

    def shape(seed: int) -> tuple[int, int]:
        return odd if seed == ODD else shapes[seed % len(shapes)]

    def one(seed: int) -> tuple[Arguments, list[int]]:
        rows, cols = shape(seed)
        values, places = _rows(1, rows, cols, seed)
        ids = [IMAGE_BEGIN, *[IMAGE] * (rows * cols // side**2), IMAGE_END]
        return {"pixel_values": values, "image_position_ids": places}, ids

    return Kind(one, lambda seed: blocks(*shape(seed), side=side), side=side)


def films(shapes: Sequence[tuple[int, int, int]], odd: tuple[int, int, int], side: int) -> Kind:
    """Videos of these frames, rows and columns, each frame with its time before it."""

    def shape(seed: int) -> tuple[int, int, int]:
        return odd if seed == ODD else shapes[seed % len(shapes)]

    def one(seed: int) -> tuple[Arguments, list[int]]:
        frames, rows, cols = shape(seed)
        values, places = _rows(frames, rows, cols, seed)
        ids: list[int] = []
        for frame in range(frames):
            slots = [VIDEO] * (rows * cols // side**2)
            ids += [*text(3, 1000 + 10 * seed + frame), IMAGE_BEGIN, *slots, IMAGE_END]
        arguments = {"pixel_values_videos": values, "video_position_ids": places}
        return {**arguments, "num_frames_per_video": torch.tensor([frames])}, ids

    def patches(seed: int) -> Slots:
        frames, rows, cols = shape(seed)
        return [slot for frame in range(frames) for slot in blocks(rows, cols, frame, side)]

    return Kind(one, patches, side=side)


# Like 26B-A4B: experts beside the MLP, keys that are values in full layers, images that see themselves
_large = builder(
    "Gemma4", VISION,
    {
        **DECODER, "layer_types": KINDS * 2, "use_bidirectional_attention": "vision", "attention_k_eq_v": True,
        "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
        "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24,
    },
    **IDS,
)  # fmt: skip
# Like E2B: inputs per layer, and last layers that read the keys of layers 2 and 3
_small = builder(
    "Gemma4", VISION,
    {
        **DECODER, "num_hidden_layers": LAYERS + 2, "layer_types": KINDS * 3, "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 2, "use_double_wide_mlp": True,
    },
    **IDS,
)  # fmt: skip
_large_family = Family(
    "gemma4", _large, pictures(SHAPES, (2, 16), side=2), types=("mm_token_type_ids", (0, 1, 2)),
    lacks={"by hand": OWN_MASK, "downsample": NOT_RESIZED},
)  # fmt: skip
FAMILIES = {
    "gemma4": _large_family,
    "gemma4 video": replace(_large_family, kind=films(FRAMES, (1, 2, 16), side=2)),
    "gemma4 with shared keys": replace(
        _large_family, build=_small, cut_up_to=LAYERS - 2, lacks={"by hand": OWN_LAYERS, "downsample": NOT_RESIZED}
    ),
}
