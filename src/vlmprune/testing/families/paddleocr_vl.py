"""PaddleOCR-VL: pictures of any size as patches in raster order; the projector makes a slot of 2 x 2."""

import torch

from vlmprune.testing.family import Family
from vlmprune.testing.images import ODD, Arguments, Kind, blocks, pixels
from vlmprune.testing.qwen import IDS, TYPES
from vlmprune.testing.weights import IMAGE, PATCH, TEXT, TOWER, VISION_END, VISION_START, builder, mrope


def _shape(seed: int) -> tuple[int, int]:
    """Rows and columns of patches."""
    return (2, 16) if seed == ODD else ((8, 12), (12, 8), (10, 10))[seed % 3]


def _image(seed: int) -> tuple[Arguments, list[int]]:
    rows, cols = _shape(seed)
    values = pixels(rows * cols, 3, PATCH, PATCH, seed=seed)
    ids = [VISION_START, *[IMAGE] * (rows * cols // 4), VISION_END]
    return {"pixel_values": values, "image_grid_thw": torch.tensor([[1, rows, cols]])}, ids


FAMILIES = {
    "paddleocr_vl": Family(
        "paddleocr_vl",
        builder(
            "PaddleOCRVL", {**TOWER, "num_hidden_layers": 4, "image_size": 32, "spatial_merge_size": 2},
            {**TEXT, "head_dim": 8, **mrope(1, 1, 2)}, **IDS,
        ),
        Kind(_image, lambda seed: blocks(*_shape(seed), side=2), side=2), types=TYPES,
    )
}  # fmt: skip
