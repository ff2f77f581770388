"""LFM2-VL: pictures of any size in padded rows of patches, 2 x 2 of which make a slot; every other layer convolves."""

import torch

from vlmprune.testing.families.qwen3_5 import RECURRENT_LACKS
from vlmprune.testing.family import Family
from vlmprune.testing.images import ODD, Arguments, Kind, blocks, pixels
from vlmprune.testing.weights import IMAGE, IMAGE_BEGIN, IMAGE_END, PATCH, TEXT, TOWER, builder

ROOM = 36  # patches of a padded row


def _shape(seed: int) -> tuple[int, int]:
    return (2, 16) if seed == ODD else ((4, 8), (8, 4), (6, 6))[seed % 3]


def _image(seed: int) -> tuple[Arguments, list[int]]:
    rows, cols = _shape(seed)
    mask = (torch.arange(ROOM) < rows * cols).long()[None]
    arguments = {
        "pixel_values": pixels(1, ROOM, 3 * PATCH**2, seed=seed) * mask[..., None], "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([[rows, cols]]),
    }  # fmt: skip
    return arguments, [IMAGE_BEGIN, *[IMAGE] * (rows * cols // 4), IMAGE_END]


_text = {
    "model_type": "lfm2", **TEXT, "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False,
    "conv_L_cache": 3,
}  # fmt: skip
FAMILIES = {
    "lfm2_vl": Family(
        "lfm2_vl",
        builder(
            "Lfm2Vl", {"model_type": "siglip2_vision_model", **TOWER, "num_patches": 64, "vision_use_head": False},
            _text, image_token_id=IMAGE, projector_hidden_size=40,
        ),
        Kind(_image, lambda seed: blocks(*_shape(seed), side=2), side=2), recurrent=True,
        lacks=RECURRENT_LACKS,
    )
}  # fmt: skip
