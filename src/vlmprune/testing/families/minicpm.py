"""MiniCPM-V 4.6 and 4.7: pictures of any size side by side in one row of patches, 4 x 4 of which make a slot."""

from __future__ import annotations

from dataclasses import replace

import torch

from vlmprune.testing.families.qwen3_5 import RECURRENT_LACKS, RECURRENT_TEXT
from vlmprune.testing.family import Family
from vlmprune.testing.images import ODD, Arguments, Kind, blocks, packed, pixels
from vlmprune.testing.qwen import TYPES
from vlmprune.testing.weights import IMAGE, IMAGE_BEGIN, IMAGE_END, LINE_BREAK, TILES, TOWER, VIDEO, builder

# wide, so that means over the 16 patches of a slot still differ
VISION = {
    "model_type": "minicpmv4_6_vision", **TOWER, "hidden_size": 64, "num_attention_heads": 8, "image_size": 24,
}  # fmt: skip
# the encoder's second layer is followed by the one that merges 2 x 2 patches
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "insert_layer_id": 1}
SLICE_BEGIN, SLICE_END = TILES[:2]
SIDE = 4  # of the square of patches behind a slot


def _shape(seed: int) -> tuple[int, int]:
    return (4, 24) if seed == ODD else [(8, 16), (16, 8), (12, 12)][seed % 3]


def _kind(token: int, ending: str = "") -> Kind:
    """Pictures, or frames of a video, each of which is an image of its own."""

    def one(seed: int) -> tuple[Arguments, list[int]]:
        rows, cols = _shape(seed)
        values = packed(pixels(3, rows * SIDE, cols * SIDE, seed=seed))
        arguments = {f"pixel_values{ending}": values, f"target_sizes{ending}": torch.tensor([[rows, cols]])}
        return arguments, [IMAGE_BEGIN, *[token] * (rows * cols // SIDE**2), IMAGE_END]

    return Kind(one, lambda seed: blocks(*_shape(seed), side=SIDE), side=SIDE)


_images = Family(
    "minicpmv4_6",
    builder("MiniCPMV4_6", VISION, {"model_type": "qwen3_5_text", **RECURRENT_TEXT}, **IDS),
    _kind(IMAGE), recurrent=True, along={"pixel_values": -1, "pixel_values_videos": -1}, lacks=RECURRENT_LACKS,
)  # fmt: skip
_canvas = replace(
    _images, name="minicpmv4_7", types=TYPES,
    build=builder(
        "MiniCPMV4_7", {**VISION, "model_type": "minicpmv4_7_vision"}, {"model_type": "qwen3_5_text", **RECURRENT_TEXT},
        image_start_id=IMAGE_BEGIN, image_end_id=IMAGE_END, slice_start_id=SLICE_BEGIN, slice_end_id=SLICE_END,
        newline_id=LINE_BREAK, **IDS,
    ),
)  # fmt: skip
FAMILIES = {
    "minicpmv4_6": _images,
    "minicpmv4_6 video": replace(_images, kind=_kind(VIDEO, "_videos")),
    "minicpmv4_7": _canvas,
    "minicpmv4_7 video": replace(_canvas, kind=_kind(VIDEO, "_videos")),
}
