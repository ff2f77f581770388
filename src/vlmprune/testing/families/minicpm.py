"""MiniCPM-V 4.6: pictures of any size side by side in one row of patches, 4 x 4 of which make a slot."""

from __future__ import annotations

from dataclasses import replace

import torch

from vlmprune.testing.families.qwen3_5 import RECURRENT_LACKS, RECURRENT_TEXT
from vlmprune.testing.family import Family
from vlmprune.testing.images import ODD, Arguments, Kind, blocks, packed, pixels
from vlmprune.testing.weights import IMAGE, IMAGE_BEGIN, IMAGE_END, TOWER, VIDEO, builder

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
    # the encoder's second layer is followed by the one that merges 2 x 2 patches
    builder(
        "MiniCPMV4_6", {"model_type": "minicpmv4_6_vision", **TOWER, "image_size": 24},
        {"model_type": "qwen3_5_text", **RECURRENT_TEXT}, image_token_id=IMAGE, video_token_id=VIDEO, insert_layer_id=1,
    ),
    _kind(IMAGE), recurrent=True, along={"pixel_values": -1, "pixel_values_videos": -1}, lacks=RECURRENT_LACKS,
)  # fmt: skip
FAMILIES = {"minicpmv4_6": _images, "minicpmv4_6 video": replace(_images, kind=_kind(VIDEO, "_videos"))}
